"""Charts, one file per question. Each function returns an altair chart; needs the extra `report`."""
