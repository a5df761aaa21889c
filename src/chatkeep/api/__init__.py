"""The REST API: `create_app` in app.py assembles it; routes/ has a module for each noun.

Routes call the store directly. The records of chatkeep.model are the request and response bodies.
"""
