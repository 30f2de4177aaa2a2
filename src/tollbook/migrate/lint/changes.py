"""What each statement does to the schema: the world is brought from before it to after it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pglast import ast
from pglast.enums import ConstrType, FunctionParameterMode, ObjectType
from pglast.enums.parsenodes import AlterTableType

from tollbook.migrate.errors import Place
from tollbook.migrate.lint import column_types
from tollbook.migrate.lint.trees import find_columns, is_a
from tollbook.migrate.lint.unit import Unit
from tollbook.migrate.lint.words import DEFAULT_SCHEMA, relation_of, split, sql
from tollbook.migrate.lint.world import Column, Constraint, Domain, Enum, Index, Routine, Table, World
from tollbook.migrate.statements import kind_of

CONSTRAINT_KINDS = {
    ConstrType.CONSTR_CHECK: "check",
    ConstrType.CONSTR_FOREIGN: "foreign",
    ConstrType.CONSTR_UNIQUE: "unique",
    ConstrType.CONSTR_PRIMARY: "primary",
    ConstrType.CONSTR_EXCLUSION: "exclusion",
    ConstrType.CONSTR_NOTNULL: "not null",
}
INPUT_MODES = (
    FunctionParameterMode.FUNC_PARAM_DEFAULT,
    FunctionParameterMode.FUNC_PARAM_IN,
    FunctionParameterMode.FUNC_PARAM_INOUT,
    FunctionParameterMode.FUNC_PARAM_VARIADIC,
)
RELATIONS = (
    ObjectType.OBJECT_TABLE,
    ObjectType.OBJECT_FOREIGN_TABLE,
    ObjectType.OBJECT_VIEW,
    ObjectType.OBJECT_MATVIEW,
    ObjectType.OBJECT_SEQUENCE,
)


@dataclass(frozen=True, slots=True)
class Step:
    """A statement to be followed, and where it stands (told only when asked: counting lines takes time)."""

    world: World
    unit: Unit

    @property
    def made_in(self) -> str:
        """The migration that it is of."""
        return self.unit.made_in

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.unit.place


def follow(world: World, tree: Any, unit: Unit) -> None:
    """Bring the world to what it is after a statement, or after a part of one."""
    if handle := HANDLERS.get(kind_of(tree)):
        handle(Step(world, unit), tree)


def _make(step: Step, relation: Any, kind: str) -> Table:
    world = step.world
    temporary = relation.relpersistence == "t" or relation.schemaname == "pg_temp"
    table = Table(
        world.key(relation.schemaname, relation.relname),
        kind,
        step.made_in,
        step.place,
        temporary=temporary,
    )
    world.tables[table.key] = table
    return table


def _create_table(step: Step, tree: Any) -> None:
    if tree.if_not_exists and step.world.find(tree.relation):
        return
    table = _make(step, tree.relation, "table")
    table.partitioned = tree.partspec is not None
    if tree.partspec is not None:
        keys = tuple(one.name or "" for one in tree.partspec.partParams or ())
        step.world.partition_keys[tree.relation.relname] = keys
    table.whole = not tree.inhRelations and tree.ofTypename is None
    for element in tree.tableElts or ():
        if is_a(element, ast.ColumnDef):
            _add_column(step, table, element)
        elif is_a(element, ast.Constraint):
            _add_constraint(step, table, element, None)
        elif is_a(element, ast.TableLikeClause):
            _copy_columns(step, table, step.world.find(element.relation))
    for parent in tree.inhRelations or ():
        _copy_columns(step, table, step.world.find(parent))


def _copy_columns(step: Step, table: Table, source: Table | None) -> None:
    if source is None:
        table.whole = False
        return
    for column in source.columns.values():
        table.columns.setdefault(column.name, Column(column.name, column.type, column.not_null, step.made_in))


def _create_foreign_table(step: Step, tree: Any) -> None:
    _create_table(step, tree.base)


def _add_column(step: Step, table: Table, element: Any) -> None:
    kinds = {one.contype for one in element.constraints or ()}
    not_null = ConstrType.CONSTR_NOTNULL in kinds or ConstrType.CONSTR_PRIMARY in kinds
    serial = column_types.is_serial(element.typeName)
    identity = ConstrType.CONSTR_IDENTITY in kinds
    kind = column_types.read(element.typeName)
    table.columns[element.colname] = Column(
        element.colname, kind, not_null or serial or identity, step.made_in
    )
    for one in element.constraints or ():
        _add_constraint(step, table, one, element.colname)


def _add_constraint(step: Step, table: Table, element: Any, column: str | None) -> None:
    kind = CONSTRAINT_KINDS.get(element.contype)
    if kind is None or (kind == "not null" and column):
        return
    keys = element.fk_attrs if kind == "foreign" else element.keys
    columns = (column,) if column else tuple(key.sval for key in keys or ())
    if element.indexname and (found := step.world.find_index(None, element.indexname)):
        columns = found[1].columns
    expression = sql(element.raw_expr) if element.raw_expr is not None else ""
    name = element.conname or _name(table, kind, columns, element.raw_expr)
    refers = element.pktable and step.world.key(element.pktable.schemaname, element.pktable.relname)
    valid = not element.skip_validation
    enforced = element.is_enforced or kind not in ("check", "foreign")
    made = Constraint(kind, name, columns, expression, refers, valid, enforced)
    made.place, made.made_in = step.place, step.made_in
    table.constraints.append(made)
    if kind in ("primary", "not null"):
        for name in columns:
            if name in table.columns:
                table.columns[name].not_null = True


def _name(table: Table, kind: str, columns: tuple[str, ...], expression: Any) -> str:
    """Return the name PostgreSQL chooses for a constraint without one (when that name is free)."""
    ending = {"check": "check", "foreign": "fkey", "unique": "key", "primary": "pkey", "exclusion": "excl"}
    middle = list(columns)
    if kind == "check" and not middle:
        used = set(find_columns(expression))
        middle = list(used) if len(used) == 1 else []
    words = [table.key[1], *([] if kind == "primary" else middle), ending.get(kind, "not_null")]
    return "_".join(words)


def _create_as(step: Step, tree: Any) -> None:
    kind = "materialized view" if tree.objtype == ObjectType.OBJECT_MATVIEW else "table"
    if not (tree.if_not_exists and step.world.find(tree.into.rel)):
        _make(step, tree.into.rel, kind).whole = False


def _select(step: Step, tree: Any) -> None:
    if tree.intoClause:
        _make(step, tree.intoClause.rel, "table").whole = False


def _create_view(step: Step, tree: Any) -> None:
    view = (
        _make(step, tree.view, "view")
        if not (tree.replace and (known := step.world.find(tree.view)))
        else known
    )
    names = name_outputs(tree)
    view.whole = names is not None
    view.columns = {name: Column(name, None, made_in=view.made_in) for name in names or ()}


def name_outputs(tree: Any) -> list[str] | None:
    """Return the columns of a CREATE VIEW, or None where they cannot be told from its words."""
    if tree.aliases:
        return [alias.sval for alias in tree.aliases]
    query = tree.query
    while is_a(query, ast.SelectStmt) and query.larg is not None:
        query = query.larg
    if not is_a(query, ast.SelectStmt) or not query.targetList:
        return None
    names: list[str] = []
    for target in query.targetList:
        name = target.name or _name_output(target.val)
        if name is None:
            return None
        names.append(name)
    return names


def _name_output(value: Any) -> str | None:
    while is_a(value, ast.TypeCast) and not is_a(value.arg, ast.A_Const):
        value = value.arg
    if is_a(value, ast.ColumnRef):
        last = value.fields[-1]
        return last.sval if is_a(last, ast.String) else None
    return split(value.funcname)[1] if is_a(value, ast.FuncCall) else None


def _create_sequence(step: Step, tree: Any) -> None:
    if not (tree.if_not_exists and step.world.find(tree.sequence)):
        _make(step, tree.sequence, "sequence")


def _create_index(step: Step, tree: Any) -> None:
    if table := step.world.find(tree.relation):
        columns = tuple(one.name or "" for one in tree.indexParams or ())
        partial = tree.whereClause is not None
        table.indexes.append(Index(tree.idxname, columns, tree.unique, partial, step.made_in))


def _create_function(step: Step, tree: Any) -> None:
    key = step.world.key(*split(tree.funcname))
    known = step.world.routines.setdefault(key, [])
    made = read_routine(tree, step.made_in)
    before = next((one for one in known if one.inputs == made.inputs), None)
    if before:
        known.remove(before)
        made.made_in = before.made_in
    known.append(made)


def read_routine(tree: Any, made_in: str) -> Routine:
    """Return what a CREATE FUNCTION declares towards its callers."""
    every = list(tree.parameters or ())
    inputs = [one for one in every if one.mode in INPUT_MODES]
    outputs = [one for one in every if one.mode not in INPUT_MODES]
    outputs += [one for one in every if one.mode == FunctionParameterMode.FUNC_PARAM_INOUT]
    words = [sql(tree.returnType)] if tree.returnType else []
    words += [f"{one.name or ''} {sql(one.argType)}" for one in outputs]
    return Routine(
        tuple(str(column_types.read(one.argType)) for one in inputs),
        tuple(one.name or "" for one in inputs),
        ", ".join(words),
        made_in,
    )


def _create_schema(step: Step, tree: Any) -> None:
    if tree.schemaname:
        step.world.schemas.setdefault(tree.schemaname, step.made_in)
    path, step.world.path = step.world.path, tree.schemaname or step.world.path
    for element in tree.schemaElts or ():
        follow(step.world, element, step.unit)
    step.world.path = path


def _create_enum(step: Step, tree: Any) -> None:
    step.world.enums[step.world.key(*split(tree.typeName))] = Enum(step.made_in)


def _create_domain(step: Step, tree: Any) -> None:
    kinds = (ConstrType.CONSTR_CHECK, ConstrType.CONSTR_NOTNULL)
    constrained = any(one.contype in kinds for one in tree.constraints or ())
    step.world.domains[step.world.key(*split(tree.domainname))] = Domain(sql(tree.typeName), constrained)


def _alter_domain(step: Step, tree: Any) -> None:
    if tree.subtype in ("C", "O"):  # ADD CONSTRAINT, SET NOT NULL
        step.world.domains.setdefault(step.world.key(*split(tree.typeName)), Domain("", constrained=True))
        step.world.domains[step.world.key(*split(tree.typeName))].constrained = True


def _alter_enum(step: Step, tree: Any) -> None:
    key = step.world.key(*split(tree.typeName))
    if tree.newVal and tree.oldVal is None:
        step.world.enums.setdefault(key, Enum("")).added[tree.newVal] = step.made_in


def _drop(step: Step, tree: Any) -> None:
    if drop := DROPS.get(tree.removeType):
        for name in tree.objects or ():
            drop(step.world, name)


def _drop_relation(world: World, name: Any) -> None:
    if table := world.find(relation_of(name)):
        world.tables.pop(table.key, None)


def _drop_index(world: World, name: Any) -> None:
    if found := world.find_index(*split(name)):
        found[0].indexes.remove(found[1])


def _drop_schema(world: World, name: Any) -> None:
    world.schemas.pop(name.sval, None)
    world.tables = {key: one for key, one in world.tables.items() if key[0] != name.sval}


def _drop_policy(world: World, name: Any) -> None:
    if table := world.find(relation_of(name[:-1])):
        table.policies -= 1


def _drop_routine(world: World, name: Any) -> None:
    world.routines.pop(world.key(*split(name.objname)), None)


def _drop_type(world: World, name: Any) -> None:
    world.enums.pop(world.key(*split(name.names)), None)


def _alter_table(step: Step, tree: Any) -> None:
    table = step.world.find(tree.relation)
    if table is None:
        # Known from now on, though not by all its columns: what this file adds to it is new.
        table = _make(step, tree.relation, "table")
        table.made_in, table.whole = "", False
    for command in tree.cmds or ():
        if handle := COMMANDS.get(command.subtype):
            handle(step, table, command)


def _alter_add_column(step: Step, table: Table, command: Any) -> None:
    if not (command.missing_ok and command.def_.colname in table.columns):
        _add_column(step, table, command.def_)


def _alter_drop_column(step: Step, table: Table, command: Any) -> None:
    table.columns.pop(command.name, None)
    table.constraints = [one for one in table.constraints if command.name not in one.columns]
    table.indexes = [one for one in table.indexes if command.name not in one.columns]


def _alter_type(step: Step, table: Table, command: Any) -> None:
    if column := table.columns.get(command.name):
        column.type = column_types.read(command.def_.typeName)


def _alter_not_null(step: Step, table: Table, command: Any) -> None:
    column = table.columns.setdefault(command.name, Column(command.name, None))
    column.not_null = command.subtype == AlterTableType.AT_SetNotNull


def _alter_drop_constraint(step: Step, table: Table, command: Any) -> None:
    table.constraints = [one for one in table.constraints if one.name != command.name]


def _alter_validate(step: Step, table: Table, command: Any) -> None:
    if found := table.find_constraint(command.name):
        found.validated = True


def _alter_security(step: Step, table: Table, command: Any) -> None:
    on = command.subtype == AlterTableType.AT_EnableRowSecurity
    table.secured_at, table.secured_in = (step.place, step.made_in) if on else (None, "")


def _create_policy(step: Step, tree: Any) -> None:
    table = step.world.find(tree.table) or _make(step, tree.table, "table")
    table.policies += 1


def _create_trigger(step: Step, tree: Any) -> None:
    key = (tree.relation.relname, tree.trigname)
    if not (tree.replace and key in step.world.triggers):
        step.world.triggers[key] = step.made_in


def _rename(step: Step, tree: Any) -> None:
    world = step.world
    if tree.renameType in RELATIONS and tree.relation is not None:
        if table := world.find(tree.relation):
            del world.tables[table.key]
            table.key = (table.key[0], tree.newname)
            world.tables[table.key] = table
    elif tree.renameType == ObjectType.OBJECT_COLUMN and (table := world.find(tree.relation)):
        _rename_column(table, tree.subname, tree.newname)
    elif tree.renameType == ObjectType.OBJECT_TABCONSTRAINT and (table := world.find(tree.relation)):
        if found := table.find_constraint(tree.subname):
            found.name = tree.newname
    elif tree.renameType == ObjectType.OBJECT_INDEX:
        relation: Any = tree.relation
        if index := world.find_index(relation.schemaname, relation.relname):
            index[1].name = tree.newname


def _rename_column(table: Table, old: str, new: str) -> None:
    def swap(columns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(new if name == old else name for name in columns)

    if column := table.columns.get(old):
        column.name = new
        table.columns = {one.name: one for one in table.columns.values()}
    for one in (*table.constraints, *table.indexes):
        one.columns = swap(one.columns)


def _move(step: Step, tree: Any) -> None:
    if tree.relation is not None and (table := step.world.find(tree.relation)):
        del step.world.tables[table.key]
        table.key = (tree.newschema, table.key[1])
        step.world.tables[table.key] = table


def _set(step: Step, tree: Any) -> None:
    if tree.name == "search_path":
        values: list[Any] = [getattr(argument, "val", None) for argument in tree.args or ()]
        words: list[str] = [value.sval for value in values if is_a(value, ast.String) and value.sval]
        step.world.path = next((word for word in words if not word.startswith("$")), DEFAULT_SCHEMA)


DROPS: dict[ObjectType, Callable[[World, Any], None]] = {
    **dict.fromkeys(RELATIONS, _drop_relation),
    ObjectType.OBJECT_INDEX: _drop_index,
    ObjectType.OBJECT_SCHEMA: _drop_schema,
    ObjectType.OBJECT_POLICY: _drop_policy,
    ObjectType.OBJECT_FUNCTION: _drop_routine,
    ObjectType.OBJECT_PROCEDURE: _drop_routine,
    ObjectType.OBJECT_TYPE: _drop_type,
}

COMMANDS: dict[AlterTableType, Callable[[Step, Table, Any], None]] = {
    AlterTableType.AT_AddColumn: _alter_add_column,
    AlterTableType.AT_DropColumn: _alter_drop_column,
    AlterTableType.AT_AlterColumnType: _alter_type,
    AlterTableType.AT_SetNotNull: _alter_not_null,
    AlterTableType.AT_DropNotNull: _alter_not_null,
    AlterTableType.AT_AddConstraint: lambda step, table, command: _add_constraint(
        step, table, command.def_, None
    ),
    AlterTableType.AT_DropConstraint: _alter_drop_constraint,
    AlterTableType.AT_ValidateConstraint: _alter_validate,
    AlterTableType.AT_EnableRowSecurity: _alter_security,
    AlterTableType.AT_DisableRowSecurity: _alter_security,
}

HANDLERS: dict[type, Callable[[Step, Any], None]] = {
    ast.CreateStmt: _create_table,
    ast.CreateForeignTableStmt: _create_foreign_table,
    ast.CreateTableAsStmt: _create_as,
    ast.SelectStmt: _select,
    ast.ViewStmt: _create_view,
    ast.CreateSeqStmt: _create_sequence,
    ast.IndexStmt: _create_index,
    ast.CreateFunctionStmt: _create_function,
    ast.CreateSchemaStmt: _create_schema,
    ast.CreateEnumStmt: _create_enum,
    ast.AlterEnumStmt: _alter_enum,
    ast.CreateDomainStmt: _create_domain,
    ast.AlterDomainStmt: _alter_domain,
    ast.DropStmt: _drop,
    ast.AlterTableStmt: _alter_table,
    ast.CreatePolicyStmt: _create_policy,
    ast.CreateTrigStmt: _create_trigger,
    ast.RenameStmt: _rename,
    ast.AlterObjectSchemaStmt: _move,
    ast.VariableSetStmt: _set,
}
