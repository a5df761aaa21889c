"""The REST API: `create_app` in app.py puts it together, and each noun has a router module of its own.

Routes call the store directly. The records of chatkeep.model are the bodies that come and go.
"""
