"""What a trial is, how a study's settings become trials, and what each leaves: its record, and the folder it lies in.

Beneath `study`, `schedule` and `engines`, which all speak of trials, so that arrows between them run one way.
"""
