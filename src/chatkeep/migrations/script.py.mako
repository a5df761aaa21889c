"""${message}"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """What this revision adds."""


def downgrade() -> None:
    """What takes it away again."""
