"""Integrations with other libraries, a module for each; a library is imported when its integration is used."""
