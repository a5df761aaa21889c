"""Alembic's environment: offline only, it renders SQL for the configuration's `dialect`."""

from alembic import context

dialect = context.config.get_main_option("dialect")
context.configure(dialect_name=dialect, version_table="chatkeep_schema", transactional_ddl=False, literal_binds=True)
context.run_migrations()
