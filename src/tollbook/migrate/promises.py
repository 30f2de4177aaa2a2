"""The objects a script promises to make, read from its statements: what must be there once it has run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pglast import ast
from pglast.enums import DropBehavior, FunctionParameterMode, ObjectType, TransactionStmtKind
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.objects import RELATION_KINDS, Promise
from tollbook.migrate.statements import Statement, kind_of

# Statements after which other objects are what they were: with only these, nothing promised earlier can go.
KEEPING = (
    ast.CreateStmt, ast.CreateTableAsStmt, ast.ViewStmt, ast.IndexStmt, ast.CreateSchemaStmt,
    ast.CreateSeqStmt, ast.CreateFunctionStmt, ast.CreateTrigStmt, ast.CreateExtensionStmt,
    ast.CreateEnumStmt, ast.CompositeTypeStmt, ast.CreateRangeStmt, ast.CreateDomainStmt,
    ast.DefineStmt, ast.CommentStmt, ast.GrantStmt, ast.GrantRoleStmt, ast.InsertStmt, ast.UpdateStmt,
    ast.DeleteStmt, ast.VariableSetStmt, ast.CreatePolicyStmt, ast.AlterEnumStmt, ast.CreateStatsStmt,
    ast.AlterOwnerStmt, ast.RefreshMatViewStmt,
)  # fmt: skip
# Of ALTER TABLE, what leaves indexes, triggers and sequences alone. Most migrations are no more than this.
KEEPING_COMMANDS = frozenset(
    (
        AlterTableType.AT_AddColumn,
        AlterTableType.AT_ColumnDefault,
        AlterTableType.AT_DropNotNull,
        AlterTableType.AT_SetNotNull,
        AlterTableType.AT_SetStatistics,
        AlterTableType.AT_SetStorage,
        AlterTableType.AT_AlterColumnType,
        AlterTableType.AT_ValidateConstraint,
        AlterTableType.AT_ChangeOwner,
        AlterTableType.AT_SetRelOptions,
        AlterTableType.AT_ReplicaIdentity,
        AlterTableType.AT_EnableTrig,
        AlterTableType.AT_DisableTrig,
        AlterTableType.AT_EnableRowSecurity,
        AlterTableType.AT_DisableRowSecurity,
        AlterTableType.AT_ForceRowSecurity,
        AlterTableType.AT_NoForceRowSecurity,
    )
)
# Statements that can do anything, unseen by the grammar.
OPAQUE = (ast.DoStmt, ast.CallStmt, ast.ExecuteStmt, ast.SelectStmt)
KINDS = {
    ObjectType.OBJECT_TABLE: "table",
    ObjectType.OBJECT_FOREIGN_TABLE: "table",
    ObjectType.OBJECT_VIEW: "view",
    ObjectType.OBJECT_MATVIEW: "materialized view",
    ObjectType.OBJECT_INDEX: "index",
    ObjectType.OBJECT_SEQUENCE: "sequence",
    ObjectType.OBJECT_TYPE: "type",
    ObjectType.OBJECT_DOMAIN: "type",
    ObjectType.OBJECT_FUNCTION: "function",
    ObjectType.OBJECT_PROCEDURE: "function",
    ObjectType.OBJECT_ROUTINE: "function",
    ObjectType.OBJECT_AGGREGATE: "function",
    ObjectType.OBJECT_SCHEMA: "schema",
    ObjectType.OBJECT_EXTENSION: "extension",
    ObjectType.OBJECT_TRIGGER: "trigger",
}
ON_TABLE = ("index", "trigger")
TAKING_COMMANDS = (AlterTableType.AT_DropColumn, AlterTableType.AT_DropConstraint)
INPUT_MODES = (
    FunctionParameterMode.FUNC_PARAM_DEFAULT,
    FunctionParameterMode.FUNC_PARAM_IN,
    FunctionParameterMode.FUNC_PARAM_INOUT,
    FunctionParameterMode.FUNC_PARAM_VARIADIC,
)


@dataclass(slots=True)
class Promises:
    """What one script makes and takes, statement by statement."""

    made: list[Promise] = field(default_factory=list[Promise])
    dropped: list[Promise] = field(default_factory=list[Promise])
    extensions: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    opaque: bool = False
    may_remove: bool = False
    taking: bool = False  # what is not named may go with what is
    schema: str | None = None  # where unqualified names go after SET search_path; None: the session's
    passing: set[str] = field(default_factory=set[str])  # temporary tables and partitions made here
    named: "_Named" = field(default_factory=lambda: _Named())

    def make(self, promise: Promise) -> None:
        """Add a promise; made again (OR REPLACE, IF NOT EXISTS) it counts once.

        What hangs on a temporary table or a partition comes and goes with it, and is no promise.
        """
        if promise.schema == "pg_temp" or promise.on in self.passing:
            return
        if promise.schema is None and promise.kind not in ("schema", "extension"):
            # An index or trigger lies in its table's schema, which need not be the first of the search path.
            beside = self.named.find(self.made, promise.on) if promise.on else ()
            if schema := next((other.schema for other in beside), self.schema):
                promise = replace(promise, schema=schema)
        if promise.name is None or not any(
            same(promise, other) for other in self.named.find(self.made, promise.name)
        ):
            self.made.append(promise)

    def drop(self, gone: Promise) -> None:
        """Take back what a later statement of the same script drops, with the indexes and triggers on it."""
        self.dropped.append(gone)
        self.made = [promise for promise in self.made if not (same(gone, promise) or hangs_on(promise, gone))]

    def recognise(self, named: Promise) -> Promise:
        """Return what is meant by a name: what was made here, or what need not be there, or of that kind."""
        kinds = RELATION_KINDS if named.kind == "table" else (named.kind,)  # ALTER TABLE is said of all
        made = (one for one in self.made if one.kind in kinds and same(replace(named, kind=one.kind), one))
        if (found := next(made, None)) is None and named.kind == "index":
            self.loosen(lambda one: one.kind == "index" and one.name is None)  # it may be that one's own name
        return found or replace(named, loose=True)

    def loosen(self, may_go: Callable[[Promise], bool]) -> None:
        """Note what may not be there, unseen: taken by CASCADE or with a column, or of another name."""
        if any(may_go(promise) for promise in self.made):
            self.made = [replace(one, loose=True) if may_go(one) else one for one in self.made]


@dataclass(slots=True)
class _Named:
    """What is made, by name: a dump makes thousands of objects in one file."""

    made: list[Promise] = field(default_factory=list[Promise])
    count: int = 0
    names: dict[str | None, list[Promise]] = field(default_factory=dict[str | None, list[Promise]])

    def find(self, made: list[Promise], name: str) -> list[Promise]:
        """Return what has this name in a list that only grows; another list is read anew."""
        if made is not self.made:
            self.made, self.count, self.names = made, 0, {}
        for promise in made[self.count :]:
            self.names.setdefault(promise.name, []).append(promise)
        self.count = len(made)
        return self.names.get(name, [])


def same(one: Promise, other: Promise) -> bool:
    """Whether two promises mean the same object; a name without a schema may be in any."""
    return (
        (one.kind, one.name) == (other.kind, other.name)
        and _may_equal(one.schema, other.schema)
        and _may_equal(one.on, other.on)
        and _may_equal(one.args, other.args)
    )


def _may_equal(one: object, other: object) -> bool:
    return one is None or other is None or one == other


def hangs_on(promise: Promise, gone: Promise) -> bool:
    """Whether something goes with what it is on, or in."""
    if gone.kind == "schema":
        return promise.schema == gone.name
    on_it = gone.kind in ("table", "materialized view", "view") and promise.on == gone.name
    return on_it and _may_equal(promise.schema, gone.schema)


def collect(statements: Iterable[Statement]) -> Promises:
    """Return what the statements, run in order, leave behind by their own words."""
    promises = Promises()
    savepoints: list[tuple[str, list[Promise]]] = []
    for statement in statements:
        tree = statement.tree
        handle = HANDLERS.get(kind_of(tree))
        if isinstance(tree, ast.TransactionStmt):
            _follow(promises, tree, savepoints)
        if isinstance(tree, OPAQUE):
            promises.opaque = True
        if not isinstance(tree, KEEPING) and not _only_adds(tree):
            promises.may_remove = True
        if handle:
            handle(promises, tree, statement.index)
        if may_go := _find_taken(tree):
            promises.taking = True
            promises.loosen(may_go)
    return promises


def _find_taken(tree: Any) -> Callable[[Promise], bool] | None:
    """Return what tells the promises that a statement may take with it, where it may."""
    if isinstance(tree, ast.DropOwnedStmt):
        return _is_any
    if isinstance(tree, ast.DropStmt):
        of_table = tree.removeType in (ObjectType.OBJECT_TABLE, ObjectType.OBJECT_FOREIGN_TABLE)
        cascading = tree.behavior == DropBehavior.DROP_CASCADE
        return _is_any if cascading else _may_be_a_tables if of_table else None
    return _find_taken_with(tree) if isinstance(tree, ast.AlterTableStmt) else None


def _find_taken_with(tree: Any) -> Callable[[Promise], bool] | None:
    """Return what tells the promises that go with the columns and constraints of a table."""
    taking = [one for one in tree.cmds or () if one.subtype in TAKING_COMMANDS]
    if any(one.behavior == DropBehavior.DROP_CASCADE for one in taking):
        return _is_any
    table = tree.relation.relname
    return (lambda promise: _may_be_a_tables(promise) or promise.on == table) if taking else None


def _is_any(promise: Promise) -> bool:
    return True


def _may_be_a_tables(promise: Promise) -> bool:
    """Whether it may go with a table without being said to be on one: it is owned, or was renamed only."""
    return promise.kind == "sequence" or (promise.kind == "index" and promise.on is None)


def _follow(promises: Promises, tree: Any, savepoints: list[tuple[str, list[Promise]]]) -> None:
    """What is rolled back to a savepoint is no promise."""
    if tree.kind == TransactionStmtKind.TRANS_STMT_SAVEPOINT:
        savepoints.append((tree.savepoint_name, list(promises.made)))
    elif tree.kind == TransactionStmtKind.TRANS_STMT_ROLLBACK_TO:
        made = (made for name, made in reversed(savepoints) if name == tree.savepoint_name)
        promises.made = list(next(made, promises.made))


def _only_adds(tree: Any) -> bool:
    return isinstance(tree, ast.AlterTableStmt) and all(
        # A constraint USING INDEX gives the index its own name.
        command.subtype in KEEPING_COMMANDS
        or (command.subtype == AlterTableType.AT_AddConstraint and not command.def_.indexname)
        for command in tree.cmds or ()
    )


def _relation(kind: str, relation: Any, *, conditional: bool) -> Promise:
    return Promise(kind, relation.schemaname, relation.relname, conditional=conditional)


def _is_temporary(relation: Any) -> bool:
    return relation.relpersistence == "t" or relation.schemaname == "pg_temp"


def _make_table(promises: Promises, tree: Any, index: int) -> None:
    # A partition comes and goes with time: it is part of its table, and no promise of its own.
    if _is_temporary(tree.relation) or tree.partbound is not None:
        promises.passing.add(tree.relation.relname)
    else:
        promises.make(_relation("table", tree.relation, conditional=tree.if_not_exists))


def _make_foreign_table(promises: Promises, tree: Any, index: int) -> None:
    _make_table(promises, tree.base, index)


def _make_table_as(promises: Promises, tree: Any, index: int) -> None:
    if _is_temporary(tree.into.rel):
        promises.passing.add(tree.into.rel.relname)
    else:
        promises.make(_relation(KINDS[tree.objtype], tree.into.rel, conditional=tree.if_not_exists))


def _make_select_into(promises: Promises, tree: Any, index: int) -> None:
    if tree.intoClause and not _is_temporary(tree.intoClause.rel):
        promises.make(_relation("table", tree.intoClause.rel, conditional=False))


def _make_view(promises: Promises, tree: Any, index: int) -> None:
    if not _is_temporary(tree.view):
        view = _relation("view", tree.view, conditional=tree.replace)
        promises.make(replace(view, loose=bool(promises.passing)))  # of a temporary table it is temporary


def _make_sequence(promises: Promises, tree: Any, index: int) -> None:
    if not _is_temporary(tree.sequence):
        promises.make(_relation("sequence", tree.sequence, conditional=tree.if_not_exists))


def _make_index(promises: Promises, tree: Any, index: int) -> None:
    table = tree.relation
    promises.make(
        Promise("index", table.schemaname, tree.idxname, table.relname, conditional=tree.if_not_exists)
    )


def _make_trigger(promises: Promises, tree: Any, index: int) -> None:
    table = tree.relation
    promises.make(
        Promise("trigger", table.schemaname, tree.trigname, table.relname, conditional=tree.replace)
    )


def _make_function(promises: Promises, tree: Any, index: int) -> None:
    schema, name = _split_name(tree.funcname)
    args = tuple(
        _name_type(parameter.argType) for parameter in tree.parameters or () if parameter.mode in INPUT_MODES
    )
    promises.make(Promise("function", schema, name, args=args, conditional=tree.replace))


def _make_schema(promises: Promises, tree: Any, index: int) -> None:
    if tree.schemaname:
        promises.make(Promise("schema", None, tree.schemaname, conditional=tree.if_not_exists))
    outside, promises.schema = promises.schema, tree.schemaname or promises.schema
    for element in collect(Statement(element, index, index) for element in tree.schemaElts or ()).made:
        promises.make(element if element.schema else replace(element, schema=promises.schema))
    promises.schema = outside


def _make_extension(promises: Promises, tree: Any, index: int) -> None:
    promises.extensions.append((tree.extname, index))
    promises.make(Promise("extension", None, tree.extname, conditional=tree.if_not_exists))


def _make_type(promises: Promises, tree: Any, index: int) -> None:
    promises.make(Promise("type", *_split_name(tree.typeName)))


def _make_composite(promises: Promises, tree: Any, index: int) -> None:
    promises.make(_relation("type", tree.typevar, conditional=False))


def _make_domain(promises: Promises, tree: Any, index: int) -> None:
    promises.make(Promise("type", *_split_name(tree.domainname)))


def _define(promises: Promises, tree: Any, index: int) -> None:
    if tree.kind == ObjectType.OBJECT_TYPE:
        promises.make(Promise("type", *_split_name(tree.defnames), conditional=tree.if_not_exists))
    elif tree.kind == ObjectType.OBJECT_AGGREGATE:
        promises.make(Promise("function", *_split_name(tree.defnames), conditional=tree.replace))


def _drop(promises: Promises, tree: Any, index: int) -> None:
    kind = KINDS.get(tree.removeType)
    for name in tree.objects or () if kind else ():
        assert kind
        gone = _name_object(kind, name)
        promises.recognise(gone)
        promises.drop(gone)


def _name_object(kind: str, name: Any) -> Promise:
    if kind == "function":
        args = None if name.args_unspecified else tuple(_name_type(arg) for arg in name.objargs or ())
        return Promise(kind, *_split_name(name.objname), args=args)
    if isinstance(name, ast.TypeName):
        return Promise(kind, *_split_name(name.names or ()))
    if isinstance(name, ast.String):
        return Promise(kind, None, name.sval)
    if kind == "trigger":
        schema, table = _split_name(name[:-1])
        return Promise(kind, schema, name[-1].sval, table)
    return Promise(kind, *_split_name(name))


def _alter_table(promises: Promises, tree: Any, index: int) -> None:
    for command in tree.cmds or ():
        if command.subtype == AlterTableType.AT_AddConstraint and command.def_.indexname:
            _rename_used_index(promises, tree.relation, command.def_)
        if command.subtype == AlterTableType.AT_AttachPartition and tree.objtype == ObjectType.OBJECT_TABLE:
            attached = _relation("table", command.def_.name, conditional=False)
            name = command.def_.name.relname
            promises.passing.add(name)
            promises.made = [
                promise
                for promise in promises.made
                if promise.on != name and (promise.name != name or not same(attached, promise))
            ]


def _rename_used_index(promises: Promises, table: Any, constraint: Any) -> None:
    """A constraint that takes an index for its own gives it its name."""
    old = promises.recognise(Promise("index", table.schemaname, constraint.indexname, table.relname))
    promises.drop(old)
    promises.make(replace(old, name=constraint.conname or constraint.indexname, conditional=False))


def _rename(promises: Promises, tree: Any, index: int) -> None:
    if tree.renameType == ObjectType.OBJECT_TABCONSTRAINT:
        own = Promise("index", tree.relation.schemaname, tree.subname, tree.relation.relname)
        promises.made = [replace(one, name=tree.newname) if same(own, one) else one for one in promises.made]
        return
    kind = KINDS.get(tree.renameType)
    if kind is None:
        return
    old = promises.recognise(_name_renamed(kind, tree))
    promises.dropped.append(old)
    promises.made = [
        _follow_name(promise, old, tree.newname) for promise in promises.made if not same(old, promise)
    ]
    promises.make(replace(old, name=tree.newname, conditional=False))


def _follow_name(promise: Promise, old: Promise, name: str) -> Promise:
    """Return what hangs on something renamed, by its new name."""
    if not hangs_on(promise, old):
        return promise
    return replace(promise, schema=name) if old.kind == "schema" else replace(promise, on=name)


def _name_renamed(kind: str, tree: Any) -> Promise:
    if kind == "trigger":
        return Promise(kind, tree.relation.schemaname, tree.subname, tree.relation.relname)
    if kind == "schema":
        return Promise(kind, None, tree.subname)
    if tree.relation is not None:
        return _relation(kind, tree.relation, conditional=False)
    return _name_object(kind, tree.object)


def _move(promises: Promises, tree: Any, index: int) -> None:
    kind = KINDS.get(tree.objectType)
    if kind is None or kind == "extension":
        return
    old = (
        _relation(kind, tree.relation, conditional=False)
        if tree.relation
        else _name_object(kind, tree.object)
    )
    old = promises.recognise(old)
    moved = [promise for promise in promises.made if same(old, promise) or hangs_on(promise, old)]
    promises.drop(old)
    for promise in moved or [old]:
        promises.make(replace(promise, schema=tree.newschema, conditional=False))


def _set(promises: Promises, tree: Any, index: int) -> None:
    if tree.name == "search_path":
        values: list[Any] = [getattr(argument, "val", None) for argument in tree.args or ()]
        words: list[str] = [value.sval for value in values if isinstance(value, ast.String) and value.sval]
        promises.schema = next((word for word in words if not word.startswith("$")), None)
        promises.loosen(lambda one: one.schema is None and one.kind not in ("schema", "extension"))


def _split_name(names: Sequence[Any]) -> tuple[str | None, str]:
    words = [name.sval for name in names]
    return (words[-2] if len(words) > 1 else None), words[-1]


def _name_type(name: Any) -> str:
    words = ".".join('"' + word.sval.replace('"', '""') + '"' for word in name.names)
    return words + ("[]" if name.arrayBounds else "")


HANDLERS: dict[type, Callable[[Promises, Any, int], None]] = {
    ast.CreateStmt: _make_table,
    ast.CreateForeignTableStmt: _make_foreign_table,
    ast.CreateTableAsStmt: _make_table_as,
    ast.SelectStmt: _make_select_into,
    ast.ViewStmt: _make_view,
    ast.CreateSeqStmt: _make_sequence,
    ast.IndexStmt: _make_index,
    ast.CreateTrigStmt: _make_trigger,
    ast.CreateFunctionStmt: _make_function,
    ast.CreateSchemaStmt: _make_schema,
    ast.CreateExtensionStmt: _make_extension,
    ast.CreateEnumStmt: _make_type,
    ast.CreateRangeStmt: _make_type,
    ast.CreateDomainStmt: _make_domain,
    ast.CompositeTypeStmt: _make_composite,
    ast.DefineStmt: _define,
    ast.DropStmt: _drop,
    ast.AlterTableStmt: _alter_table,
    ast.RenameStmt: _rename,
    ast.AlterObjectSchemaStmt: _move,
    ast.VariableSetStmt: _set,
}
