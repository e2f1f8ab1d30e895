"""The report of an evaluation: the page and its sections that several tasks use.

``document`` puts a page together; ``page`` has templates, pictures and plots.
"""
