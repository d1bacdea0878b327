"""Which cohort runs next and for how long: fixed, search, race. Runs nothing itself and knows no engine."""
