"""Which cohort runs next and for how long: fixed, search, race, anytime. Runs nothing itself and knows no engine.

A scheduler's state is on disk before it is acted on (`scheduler.StateFile`), so that a killed study goes on as if nothing had
been. How a length or a setting is chosen belongs here; what it costs is asked of `planner` and `budget`.
"""
