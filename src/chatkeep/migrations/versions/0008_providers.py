"""LLM providers: the default, what a removal needs, and an index of the conversations that name one."""

from alembic import context, op

from chatkeep.migrations import STEP

revision = "0008"
down_revision = "0007"

DEFAULT_ID = "e7ac71fe000040008000000000000001"
"""chatkeep.providers.EXTRACTIVE_ID, as it was then."""

MOMENT = "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"

# The index does not begin with the owner, as others do: whether anybody names a provider is asked for all owners. An
# append pays for it only if its conversation names one.
SQLITE_UP = (
    "ALTER TABLE llm_providers ADD COLUMN fingerprint BLOB",
    # The provider that conversations name instead, while this one is being removed.
    "ALTER TABLE llm_providers ADD COLUMN replaced_by BLOB",
    # The key and the index of the default leave out what is there already.
    f"""
    INSERT INTO llm_providers (id, provider_name, model_name, is_default, created_at, updated_at)
    VALUES (x'{DEFAULT_ID}', 'extractive', 'extractive', 1, {MOMENT}, {MOMENT}) ON CONFLICT DO NOTHING
    """,  # noqa: S608 - constants
    """
    CREATE INDEX conversations_by_provider ON conversations (llm_provider_id) WHERE llm_provider_id IS NOT NULL
    """,
    # They name no provider, and do not know that there are any.
    "UPDATE chatkeep_schema SET served_from = '0007'",
)

# Providers are lost: nothing before knows them.
SQLITE_DOWN = (
    "UPDATE conversations SET llm_provider_id = NULL WHERE llm_provider_id IS NOT NULL",
    "DROP INDEX conversations_by_provider",
    "DELETE FROM llm_providers",
    "ALTER TABLE llm_providers DROP COLUMN replaced_by",
    "ALTER TABLE llm_providers DROP COLUMN fingerprint",
    "UPDATE chatkeep_schema SET served_from = '0006'",
)

# Each step is a transaction of its own, and may be executed again. No process of 0007 uses llm_providers: nobody waits
# behind what wants that table alone.
POSTGRESQL_UP = (
    # The owner and the id are in it for those who replace a provider, some conversations at a time, in this order.
    """
    CREATE INDEX CONCURRENTLY conversations_by_provider ON conversations (llm_provider_id, owner_id, id)
        WHERE llm_provider_id IS NOT NULL
    """,
    STEP,
    # replaced_by: the provider that conversations name instead, while this one is being removed.
    "ALTER TABLE llm_providers ADD COLUMN fingerprint bytea, ADD COLUMN replaced_by uuid",
    # The key and the index of the default leave out what is there already.
    f"""
    INSERT INTO llm_providers (id, provider_name, model_name, is_default)
    VALUES ('{DEFAULT_ID}', 'extractive', 'extractive', true) ON CONFLICT DO NOTHING
    """,  # noqa: S608 - constants
    # They name no provider, and do not know that there are any.
    "UPDATE chatkeep_schema SET served_from = '0007'",
)

# Providers are lost: nothing before knows them.
POSTGRESQL_DOWN = (
    "UPDATE conversations SET llm_provider_id = NULL WHERE llm_provider_id IS NOT NULL",
    "DROP INDEX conversations_by_provider",
    "DELETE FROM llm_providers",
    "ALTER TABLE llm_providers DROP COLUMN replaced_by, DROP COLUMN fingerprint",
    "UPDATE chatkeep_schema SET served_from = '0006'",
)

UP = {"sqlite": SQLITE_UP, "postgresql": POSTGRESQL_UP}
DOWN = {"sqlite": SQLITE_DOWN, "postgresql": POSTGRESQL_DOWN}


def upgrade() -> None:
    for statement in UP[context.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN[context.get_context().dialect.name]:
        op.execute(statement)
