"""Money and time: what was booked (ledger, journal), what may still be spent, prices, and the signal at a deadline."""
