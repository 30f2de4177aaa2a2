"""The lint of migrations: hazards found in the files alone, each with the SQL that does it safely.

from tollbook.migrate.lint import lint
for finding in lint([Folder("shop", Path("migrations"))]).findings:
    print(finding.place, finding.rule, finding.sentence)
"""

from tollbook.migrate.lint.linting import lint as lint
from tollbook.migrate.lint.linting import lint_pending as lint_pending
from tollbook.migrate.lint.rule import Finding as Finding
from tollbook.migrate.lint.rule import Rule as Rule
from tollbook.migrate.lint.rules import RULES as RULES
from tollbook.migrate.lint.walk import Lint as Lint
