"""The report on one or several runs: a self-contained HTML page, and the figures that the terminal compares.

From bottom to top: `columns` reads metrics files, `thinning` selects the points of curves, `run_data` collects
everything about a run, `figures` computes what tables show, `comparison` compares configs, `page` writes the page,
`server` serves it while runs are training. `assets/` has the template, its style and script, and the library that
draws the curves. Torch-free.
"""
