"""What a trial or a study will take (memory, seconds, dollars) before it is paid: a dry run, and a model of the machine.

Everything here happens without the backbone's weights (the meta device) except `calibration`, which times a few passes.
"""
