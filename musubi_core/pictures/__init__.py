"""Pictures that explain numbers: curves, bars, grids. Drawn with Pillow, so they cost no extra package."""
