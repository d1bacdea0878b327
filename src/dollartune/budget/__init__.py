"""Money and time: prices of machines, what may be spent, where every second is booked, what a trial will cost."""
