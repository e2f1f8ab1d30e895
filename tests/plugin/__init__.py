"""A kind of data, a task, a verb and a model that the packages do not know: see tests/test_plugin.py."""
