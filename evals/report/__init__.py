"""The HTML report of an evaluation: the page, and sections that several tasks share.

``document`` assembles the page; ``page`` renders templates, pictures and plots.
"""
