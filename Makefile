# Everything needs Python and make only; uv is fetched into .tools where it is missing.
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
export UV_COMPILE_BYTECODE := 1
# The tests start hundreds of processes, which would each compile what they import, to be thrown away.
unexport PYTHONDONTWRITEBYTECODE
RUN := $(UV) run --frozen
# What serving needs, and no more, in an environment of its own: that of the tests has four times as much, and stays.
SERVING := UV_PROJECT_ENVIRONMENT=.tools/serving UV_COMPILE_BYTECODE=0 $(RUN) --no-default-groups --extra server

.PHONY: demo test check coverage apart lint bench openapi migrations crash fuzz load attacks recorder torture-mongodb backup-drill import-kills migration-drill turn-drill failover-drill turns retrieval mcp-conformance

demo: $(UV)  ## import a sample and the documentation, serve them, and say what to try
	$(SERVING) chatkeep import --database-url sqlite:///demo.db examples/conversations.jsonl
	$(SERVING) chatkeep ingest --database-url sqlite:///demo.db chatkeep docs --prune
	$(SERVING) chatkeep serve --database-url sqlite:///demo.db

test: $(UV)  ## the tests but those marked long, three at a time: each waits a third of its time
	$(RUN) pytest -n 3 --dist worksteal --durations=25 -m "not long and not apart"

coverage: $(UV)  ## all tests but those apart, with the lines that they run
	COVERAGE_CORE=sysmon $(RUN) pytest -n 3 --dist worksteal --durations=25 -m "not apart" --cov --cov-report=term-missing:skip-covered

check: $(UV)  ## all tests but those apart
	$(RUN) pytest -n 3 --dist worksteal --durations=25 -m "not apart"

apart: $(UV)  ## what make check proves on one store or in short, on the others and at length, and what stands in for others
	$(RUN) pytest -n 3 --dist worksteal -m apart

lint: $(UV)  ## format, lint and types
	$(RUN) ruff format --check
	$(RUN) ruff check
	$(RUN) mypy

bench: $(UV)  ## the speed table, into benchmarks/RESULTS.md
	$(RUN) --group bench python -m benchmarks

crash: $(UV)  ## 50 rounds of SIGKILL in the middle of appends, 40 restarts of PostgreSQL under load
	CHATKEEP_CRASH_ROUNDS=50 $(RUN) pytest tests/contract/test_crash.py -m apart
	CHATKEEP_CRASH_ROUNDS=20 $(RUN) pytest tests/stores/test_postgres.py -k restarts

fuzz: $(UV)  ## schemathesis, and the corpus of hostile texts and bodies, at full length on each database
	CHATKEEP_FUZZ_EXAMPLES=500 $(RUN) pytest tests/api/test_fuzz.py -s

load: $(UV)  ## 64 clients for 60 s on PostgreSQL, which stops for 5 s, while one of two workers is killed
	$(RUN) python -m benchmarks.load

attacks: $(UV)  ## what others see while one client attacks, on SQLite and PostgreSQL, into benchmarks/ATTACKS.md
	$(RUN) python -m benchmarks.attacks --output benchmarks/ATTACKS.md

recorder: $(UV)  ## 50 rounds of SIGKILL while the database comes and goes, 500 damaged journals, then 6,000,000 messages
	CHATKEEP_RECORDER_ROUNDS=50 $(RUN) pytest tests/recorder/test_recorder_crash.py -s
	CHATKEEP_FAULTS=500 $(RUN) pytest tests/recorder/test_journal_damage.py
	CHATKEEP_STOPPED_SECONDS=60 $(RUN) pytest tests/recorder/test_recorder_times.py
	$(RUN) python -m benchmarks.backlog
	$(RUN) python -m benchmarks.soak

backup-drill: $(UV)  ## 50 rounds of exports and backups of a server under 16 writers, on SQLite and PostgreSQL; 5 on MongoDB
	$(RUN) python -m benchmarks.backup_drill --database sqlite
	$(RUN) python -m benchmarks.backup_drill --database postgresql
	$(RUN) python -m benchmarks.backup_drill --database mongodb --rounds 5 --writers 4 --long-messages 300

import-kills: $(UV)  ## 50 imports killed and run again, on SQLite and PostgreSQL; 5 on MongoDB
	$(RUN) python -m benchmarks.import_kills --database sqlite
	$(RUN) python -m benchmarks.import_kills --database postgresql
	$(RUN) python -m benchmarks.import_kills --database mongodb --kills 5 --seeded 100 --no-real

migration-drill: $(UV)  ## 1,000,000 messages of an old commit: migrations killed 20 times, in use, and beside the version before
	$(RUN) python -m benchmarks.migration_drill --database sqlite
	$(RUN) python -m benchmarks.migration_drill --database postgresql
	$(RUN) python -m benchmarks.migration_drill --database mongodb --messages 20000 --fill-seconds 180 --kills 5 --writers 4 --seconds 20

turn-drill: $(UV)  ## turns whose worker is killed 50 times, stopped for 30 s, cut off 200 times and ended, on each database
	$(RUN) python -m benchmarks.turn_drill --database sqlite
	$(RUN) python -m benchmarks.turn_drill --database postgresql
	$(RUN) python -m benchmarks.turn_drill --database mongodb

failover-drill: $(UV)  ## answers in the background whose server is killed, 50 times; and what an answer takes beside the bare model
	$(RUN) python -m benchmarks.failover_drill --database sqlite
	$(RUN) python -m benchmarks.failover_drill --database postgresql
	$(RUN) python -m benchmarks.answer_overhead

turns: $(UV)  ## what turns write and cost on PostgreSQL, and 500 streams of one server process
	$(RUN) python -m benchmarks.turns
	$(RUN) python -m benchmarks.turn_streams

retrieval: $(UV)  ## how well a search in documents finds, on labelled sets, and how fast, among 100,000 passages
	$(RUN) python -m benchmarks.retrieval
	CHATKEEP_ALL_PAGES=1 $(RUN) pytest tests/retrieval/test_same_ranking.py
	$(RUN) python -m benchmarks.search --database sqlite
	$(RUN) python -m benchmarks.search --database postgresql

torture-mongodb: $(UV)  ## URL=… of a database on a replica set: 20 rounds each of clients and, with KILL='command', servers killed
	$(RUN) python -m benchmarks.torture_mongodb $(if $(URL),"$(URL)") $(if $(KILL),--kill "$(KILL)")

openapi: $(UV)  ## write docs/openapi.json anew
	$(RUN) python -m chatkeep.api > docs/openapi.json

mcp-conformance: $(UV)  ## the official conformance suite against the MCP server; installs it with npm, outside of this folder
	$(RUN) --group conformance python -m benchmarks.mcp_conformance

migrations: $(UV)  ## render the schema's revisions to SQL files anew
	$(RUN) python -m chatkeep.migrations

.tools/bin/uv:
	python3 -m venv .tools
	.tools/bin/pip install --quiet uv
