"""The REST API: `create_app` in app.py assembles it; routes/ has a module for each noun.

Routes call the store directly. The records of chatkeep.model are the request and response bodies.
"""

from chatkeep.extras import missing

try:
    import fastapi  # noqa: F401 - to check that it is installed
except ModuleNotFoundError as error:
    raise missing(error, "chatkeep.api", "server") from error
