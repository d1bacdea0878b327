"""Money and time: what was booked (ledger, journal), what may still be spent, prices, and the signal at a deadline.

What a trial *will* take is `planner`'s business, and who gets what is left `schedule`'s: here it is only counted and kept.
"""
