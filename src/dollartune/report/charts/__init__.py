"""Charts, one file per question. Each function returns an altair chart; needs the extra `report`.

Which rows a chart shows is decided in `report` (contents, serving_cost, learning_speed); here only how they are drawn.
"""
