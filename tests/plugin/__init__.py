"""A kind of data, a task, a verb and a model defined outside the packages: see test_plugin.py."""
