"""From a program (wasmhost/abi/program.go) to functions that C can call.

Every block is executed once. init's module dictionary holds its own names, context and a copy of the builtins, and it is
the __builtins__ of all other blocks. So a name that a block does not define is looked up in init's dictionary at the
speed of a builtin, always sees init's latest value, and two blocks may use one name for different things.

An assignment to a name of init after `global name` in an operation would go to the block's own dictionary. Such
assignments are rewritten to go to init's (see _Rewriter).
"""

import ast
import builtins
import inspect
import linecache
import sys
import types

import _kaspr
import kaspr_request
import kaspr_tables
from kaspr import DeadlineExceeded
import kaspr_app
from kaspr_app import _codecs
from json import dumps as _dumps

MAP, FILTER, SEND = 0, 1, 2
_TABLES_MAX = 16  # of an operation; TABLES_MAX of kaspr.h
_STORE = "__kaspr_init__"
_ASSIGN = "__kaspr_assign__"
_context = _kaspr.context
_program_codecs = {**_codecs, "channel": _kaspr.codec("channel")}  # which user code cannot choose


class _Problem(Exception):
    def __init__(self, type, message, line=0, column=0, traceback=""):
        self.type, self.message, self.line, self.column, self.traceback = type, message, line, column, traceback


# ---- what a block defines, seen without running it --------------------------------------------------------------------

_scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _statements(body):
    """The statements of a scope in source order, also those within if, for, while, try, with and match."""
    for node in body:
        yield node
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(node, _scopes) and isinstance(getattr(node, field, None), list):
                yield from _statements(getattr(node, field))
        for part in getattr(node, "handlers", ()) or getattr(node, "cases", ()):
            yield from _statements(part.body)


def _functions(tree):
    """Functions defined at the top of a block, by name, in source order: def, async def and name = lambda."""
    found = {}
    for node in _statements(tree.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.setdefault(node.name, node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Lambda):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, node.value)
    return found


def _own_nodes(node):
    """The nodes of a scope without those of the scopes within."""
    todo = list(ast.iter_child_nodes(node))
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, _scopes):
            todo.extend(ast.iter_child_nodes(node))


def _yields(function):
    body = function.body if isinstance(function.body, list) else [function.body]
    return any(isinstance(node, (ast.Yield, ast.YieldFrom)) for part in body if not isinstance(part, _scopes)
               for node in [part, *_own_nodes(part)])


def _imported(alias):
    return alias.asname or alias.name.partition(".")[0]


def _bound(tree):
    """Names bound at the top of a block; None when that cannot be known (from x import *)."""
    names = set()
    for node in _own_nodes(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(map(_imported, node.names))
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
    return None if "*" in names else names


def _declared_global(tree):
    return {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}


class _Rewriter(ast.NodeTransformer):
    """Makes assignments to `shared` names that a function declares global assignments to items of init's dictionary."""

    def __init__(self, shared):
        self.shared = shared
        self.names = frozenset()  # of the scope we are in

    def _item(self, name, at, ctx):
        return ast.copy_location(ast.Subscript(ast.Name(_STORE, ast.Load()), ast.Constant(name), ctx), at)

    def _after(self, node, names):
        """node, and then its names moved to init's dictionary."""
        out = [node]
        for name in names:
            if name in self.names:
                out.append(ast.copy_location(ast.Assign([self._item(name, node, ast.Store())], ast.Name(name, ast.Load())), node))
                out.append(ast.copy_location(ast.Delete([ast.Name(name, ast.Del())]), node))
        return out

    def _within(self, node, outside, body_fields=("body",)):
        """Visits the fields of a scope: those evaluated outside of it in the scope around, its body in its own."""
        for field in outside:
            self._visit_field(node, field)
        around = self.names
        own = {name for inner in _own_nodes(node) if isinstance(inner, ast.Global) for name in inner.names}
        self.names = frozenset(own & self.shared)
        for field in body_fields:
            self._visit_field(node, field)
        self.names = around

    def _visit_field(self, node, field):
        value = getattr(node, field, None)
        if isinstance(value, list):
            new = []
            for item in value:
                item = self.visit(item)
                new.extend(item if isinstance(item, list) else [item])
            value[:] = new
        elif isinstance(value, ast.AST):
            setattr(node, field, self.visit(value))

    def visit_FunctionDef(self, node):
        self._within(node, ("decorator_list", "args", "returns"))
        return self._after(node, [node.name])

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        self._within(node, ("decorator_list", "bases", "keywords"))
        return self._after(node, [node.name])

    def visit_Lambda(self, node):
        self._within(node, ("args",))
        return node

    def visit_comprehension(self, node):
        node.iter = self.visit(node.iter)
        node.ifs = [self.visit(test) for test in node.ifs]
        return node  # the target is the comprehension's own name

    def visit_Name(self, node):
        if node.id in self.names and not isinstance(node.ctx, ast.Load):
            return self._item(node.id, node, node.ctx)
        return node

    def visit_NamedExpr(self, node):
        node.value = self.visit(node.value)
        if node.target.id not in self.names:
            return node
        return ast.copy_location(ast.Call(ast.Name(_ASSIGN, ast.Load()), [ast.Constant(node.target.id), node.value], []), node)

    def visit_Import(self, node):
        return self._after(node, map(_imported, node.names))

    visit_ImportFrom = visit_Import

    def visit_ExceptHandler(self, node):
        self.generic_visit(node)
        if node.name in self.names:
            hidden = "__kaspr_caught__"
            store = ast.copy_location(ast.Assign([self._item(node.name, node, ast.Store())], ast.Name(hidden, ast.Load())), node)
            node.name = hidden
            node.body.insert(0, store)
        return node


# ---- one block --------------------------------------------------------------------------------------------------------

class _Block:
    """A Code of the manifest: parsed, compiled, run once."""

    def __init__(self, code, name):
        self.code, self.name = code, name
        self.source = code.get("python") or ""
        self.file, self.line = code.get("file") or "", max(code.get("line") or 1, 1)
        self.tree = self.compiled = self.scope = self.init = None
        self.problem = None  # the first; a block with one is not run

    def guard(self, function, *args):
        """Runs a step; whatever it raises becomes the block's problem."""
        if self.problem is not None:
            return None
        try:
            return function(*args)
        except _Problem as problem:
            self.problem = problem
        except SyntaxError as exc:
            self.problem = _Problem(type(exc).__name__, exc.msg or str(exc), exc.lineno or 0, exc.offset or 0)
        except (ValueError, RecursionError, MemoryError) as exc:
            self.problem = _Problem(type(exc).__name__, _kaspr.message(exc))
        return None

    def parse(self):
        # Empty lines in front give every node the line it has in the manifest.
        text = "\n" * (self.line - 1) + self.source
        self.tree = ast.parse(text, self.file)
        self.compiled = compile(self.tree, self.file, "exec", dont_inherit=True)

    def run(self, init):
        """Executes the block. init is init's block; None: this is init, or there is none."""
        self.init = init
        module = types.ModuleType(self.name)
        scope = self.scope = vars(module)
        if init is None:
            for name, value in vars(builtins).items():
                if not name.startswith("__") or name in ("__build_class__", "__import__", "__debug__"):
                    scope[name] = value
            scope["__builtins__"] = vars(builtins)
            scope["context"] = _context
            before = dict(scope)
        else:
            scope["__builtins__"] = init.scope
            shared = (_declared_global(self.tree) & init.names) - (_bound(self.tree) or set())
            if shared:
                scope[_STORE] = init.scope
                scope[_ASSIGN] = init.assign
                tree = ast.fix_missing_locations(_Rewriter(shared).visit(self.tree))
                self.compiled = compile(tree, self.file, "exec", dont_inherit=True)
        scope["__file__"] = self.file
        sys.modules[self.name] = module  # dataclasses, enum and pickle look here
        try:
            exec(self.compiled, scope)
        except BaseException as exc:
            raise _Problem(type(exc).__name__, _kaspr.message(exc), self._line_of(exc), 0, _kaspr.traceback(exc)) from None
        if init is None:
            self.names = {name for name, value in scope.items() if before.get(name, before) is not value}
            self.names |= _declared_global(self.tree) if self.tree is not None else set()
            self.names -= {"context", "__builtins__", "__file__"}

    def assign(self, name, value):
        self.scope[name] = value
        return value

    def _line_of(self, exc):
        line, tb = 0, exc.__traceback__
        while tb is not None:
            if tb.tb_frame.f_code.co_filename == self.file:
                line = tb.tb_lineno
            tb = tb.tb_next
        return line

    # -- entrypoint

    def entrypoint(self):
        """Name of the function to call, as far as the source tells."""
        functions = _functions(self.tree)
        wanted = self.code.get("entrypoint")
        if not wanted:
            if not functions:
                raise _Problem("Entrypoint", "the block defines no function: it needs one, as def NAME(...)")
            return next(iter(functions))
        names = _bound(self.tree)
        if self.scope is not None:
            defined = wanted in self.scope
        else:
            defined = names is None or wanted in names or "globals" in self.source
        if not defined:
            raise _Problem("Entrypoint", f'entrypoint "{wanted}" is not defined in this block' + self._hint(wanted, functions))
        return wanted

    def _hint(self, wanted, functions):
        if self.init is not None and wanted in self.init.names:
            return "; init defines it, but an entrypoint is looked up in its own block: call it from a function here"
        if not functions:
            return "; it defines no function"
        import difflib
        close = difflib.get_close_matches(wanted, functions, 1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        return f"{hint}; it defines {', '.join(functions)}" if not close or len(functions) > 1 else hint

    def check_role(self, role):
        """What is wrong with the entrypoint in this role, as far as the source tells."""
        function = _functions(self.tree).get(self.entrypoint())
        if function is not None and role != "map" and not getattr(function, "decorator_list", ()) and _yields(function):
            raise _Problem("Entrypoint", _no_yield(role), function.lineno)

    def function(self, role, arguments):
        name = self.entrypoint()
        value = self.scope.get(name)
        if not callable(value) and not self.code.get("entrypoint"):
            # The first function was rebound or deleted by the block itself.
            name, value = next(((n, self.scope[n]) for n in _functions(self.tree) if callable(self.scope.get(n))), (name, value))
        if not callable(value):
            raise _Problem("Entrypoint", f'entrypoint "{name}" is {type(value).__name__}, which cannot be called' +
                           self._hint(name, _functions(self.tree)))
        if role != "map" and (inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value)):
            raise _Problem("Entrypoint", _no_yield(role), _line_of_function(value, self))
        why = _mismatch(value, *arguments)
        if why is None:
            return value
        bare, keywords = arguments
        if role == "nameSelector" and _mismatch(value, bare, ()) is None:
            return _without_keywords(value)
        wants = ", ".join([*([] if bare else ["one value"]), *(f"{keyword}=" for keyword in keywords)]) or "nothing"
        raise _Problem("Entrypoint", f"{name} is called with {wants}: {why}", _line_of_function(value, self))


def _mismatch(function, bare, keywords):
    """Why a function cannot be called without a value (bare), or with one, and these keywords; None: nothing is known against it."""
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return None
    try:
        inspect.signature(function).bind(*() if bare else (None,), **dict.fromkeys(keywords))
    except TypeError as exc:
        return exc
    return None


def _without_keywords(function):
    """The original gives a nameSelector the value and nothing else, so what was written for it takes no tables."""
    return lambda value, **_keywords: function(value)


def _no_yield(role):
    return f"{'an' if role[0] in 'aeiou' else 'a'} {role} must return a value, not yield"


def _line_of_function(value, block):
    code = getattr(value, "__code__", None)
    return code.co_firstlineno if code is not None and code.co_filename == block.file else 0


# ---- the program ------------------------------------------------------------------------------------------------------

class _Program:
    """All blocks of a program, and where each is used."""

    def __init__(self, data):
        self.data = data
        self.blocks = {}  # by what they are: an operation named twice is one block
        self.uses = []  # (block, role, arguments, where)
        self.problems = []
        self.init = None
        self.task = data.get("kind") == "KasprTask"
        if data.get("init"):
            self.init = self._block(data["init"], "init")
        self.view = data.get("view")
        for index, op in enumerate(data.get("operations") or ()):
            keywords = self.keywords(index, op)
            for role in ("map", "filter"):
                if op.get(role):
                    self._use(op[role], role, keywords, self.task and op is data["operations"][0])
            if op.get("topicSend"):
                self._use_output(op["topicSend"], keywords)
        for output in data.get("outputs") or ():
            self._use_output(output, [])
        for table in data.get("tables") or ():
            if table.get("default"):
                self._use(table["default"], "defaultSelector", [], True)
            if (table.get("window") or {}).get("selector"):
                self._use(table["window"]["selector"], "relativeToSelector", [])
        if self.view:
            for name, outcome in self._answers:
                if self.view[name].get(outcome):
                    self._use(self.view[name][outcome], f"{name}.{outcome}", [])
        for block in data.get("blocks") or ():
            self._use(block["code"], block["role"], [])

    _answers = tuple((name, outcome) for name in ("statusSelector", "headersSelector", "bodySelector") for outcome in ("onSuccess", "onError"))

    def keywords(self, index, op):
        """What an operation gets by name: its tables, and the first one of a view the parameters of the path."""
        return [table["paramName"] for table in op.get("tables") or ()] + (self.view["params"] if self.view and index == 0 else [])

    def _block(self, code, name=None):
        key = (code.get("file"), code.get("line"), code.get("python"), code.get("entrypoint"), name)
        block = self.blocks.get(key)
        if block is None:
            block = self.blocks[key] = _Block(code, f"kaspr_{name or f'code_{len(self.blocks)}'}")
        return block

    def _use(self, code, role, keywords, bare=False):
        """bare: it is called without a value."""
        self.uses.append((self._block(code), role, (bare, keywords), code.get("where") or ""))

    _selectors = ("predicate", "nameSelector", "keySelector", "valueSelector", "partitionSelector", "headersSelector")

    _scheduled = ("nameSelector", "deliverAt", "delay", "requestId")

    def _use_output(self, output, keywords):
        for name in self._selectors:
            if output.get(name):
                self._use(output[name], name, keywords)
        for name in self._scheduled:
            code = (output.get("schedule") or {}).get(name)
            if code:
                self._use(code, name, keywords)

    def sources(self):
        """{file: {line: text}} of all blocks; the files are also made known to linecache."""
        files = {}
        for block in self.blocks.values():
            lines = files.setdefault(block.file, {})
            for number, text in enumerate(block.source.splitlines(), block.line):
                lines[number] = text.strip()
        for file, lines in files.items():
            last = max(lines, default=0)
            text = [""] * last
            for block in self.blocks.values():
                if block.file == file:
                    text[block.line - 1:block.line - 1 + len(block.source.splitlines())] = block.source.splitlines()
            linecache.cache[file] = (len(text), None, [line + "\n" for line in text], file)
        return files

    def problem(self, block, where, p):
        self.problems.append({
            "file": block.file, "line": p.line or block.line, "column": p.column, "where": where, "type": p.type,
            "message": p.message, "traceback": p.traceback,
        })

    def general(self, type, message, where):
        block = next(iter(self.blocks.values()), None)
        self.problems.append({"file": block.file if block else "", "line": 0, "column": 0, "where": where, "type": type,
                              "message": message, "traceback": ""})

    def report(self):
        """Problems of blocks, each once."""
        said = set()
        if self.init is not None and self.init.problem is not None:
            self.problem(self.init, self.init.code.get("where") or "init", self.init.problem)
        for block, _role, _arguments, where in self.uses:
            if block.problem is not None and id(block) not in said:
                said.add(id(block))
                self.problem(block, where, block.problem)
        return _dumps(self.problems).encode() if self.problems else None

    def parse(self):
        for block in self.blocks.values():
            block.guard(block.parse)

    def check_tables(self):
        names = [table["name"] for table in self.data.get("tables") or ()]
        for op in self.data.get("operations") or ():
            where = f'operation "{op["name"]}"'
            for table in op.get("tables") or ():
                if table["name"] not in names:
                    self.general("Tables", f'there is no table "{table["name"]}"', where)
            if len(op.get("tables") or ()) > _TABLES_MAX:
                self.general("Tables", f"an operation has at most {_TABLES_MAX} tables", where)

    def make_tables(self):
        """Before any block runs: code may keep what context["app"].tables gives."""
        self.tables = kaspr_tables.make(self.data)
        kaspr_app.app.tables._tables = {table.name: table for table in self.tables}

    def default_of(self, table, block, function):
        """Calls a defaultSelector, as part of loading."""
        try:
            kaspr_tables.set_default(table, function())
        except BaseException as exc:
            block.problem = _Problem(type(exc).__name__, _kaspr.message(exc), block._line_of(exc), 0, _kaspr.traceback(exc))

    def check_static(self):
        for block, role, _arguments, _where in self.uses:
            block.guard(block.check_role, role)

    def run(self):
        """Executes init, then the others in pipeline order."""
        init = self.init if self.init is not None else _Block({"python": ""}, "kaspr_init")
        if self.init is None:
            init.parse()
        init.guard(init.run, None)
        if init.problem is not None:
            self.check_static()  # the others would fail for want of init's names
            return
        for block in self.blocks.values():
            if block is not init:
                block.guard(block.run, init)
                if block.problem is not None and block.problem.type == DeadlineExceeded.__name__:
                    return

    # -- the tuples that program.c reads

    def spec(self, sources):
        functions = iter([block.guard(block.function, role, arguments) for block, role, arguments, _ in self.uses])

        def code(owner, name):
            return (next(functions), owner[name].get("where") or name) if owner.get(name) else None

        def output(o, index, label):
            codes = {name: code(o, name) for name in self._selectors}
            later = o.get("schedule")
            if later:
                selectors = {"headersSelector": codes["headersSelector"], **{name: code(later, name) for name in self._scheduled}}
                for name, selector in selectors.items():
                    if selector:
                        block = self._block((later if name in later else o)[name])
                        selectors[name] = (selector[0], block.file, block.line)
                codes["headersSelector"] = (kaspr_app.scheduled(later.get("topic"), bool(later.get("replace")), selectors), f"{label}, schedule")
            declare = o.get("declare")
            return (
                index, o.get("topic") or None, _program_codecs[o.get("keySerializer") or "raw"], _program_codecs[o.get("valueSerializer") or "json"],
                int(bool(o.get("ack"))), codes["nameSelector"], codes["keySelector"], codes["valueSelector"],
                codes["partitionSelector"], codes["headersSelector"], codes["predicate"], label, f"{label}, key", f"{label}, value",
                None if declare is None else _dumps({k: v for k, v in declare.items() if v})[1:-1], 1 if o.get("carry") else 2 if o.get("carryKey") else 0,  # CARRY_*
                int(bool(o.get("noValue"))),
                o.get("keySchema") or 0, o.get("valueSchema") or 0,
            )

        by_name = {table.name: table for table in self.tables}
        ops = []
        for index, op in enumerate(self.data.get("operations") or ()):
            # The order is that of uses.
            mapper, filter_ = code(op, "map"), code(op, "filter")
            send = output(op["topicSend"], -1, f'operation "{op["name"]}"') if op.get("topicSend") else None
            kind = SEND if send else FILTER if filter_ else MAP
            refs = op.get("tables") or ()
            ops.append((kind, filter_ or mapper, tuple(self.keywords(index, op)), tuple(by_name[ref["name"]] for ref in refs),
                        send, int(bool(op.get("passThrough"))), op["name"]))
        outputs = []
        for index, o in enumerate(self.data.get("outputs") or ()):
            label = o.get("label") or (f'output "{o["topic"]}"' if o.get("topic") else f"output {index + 1}")
            outputs.append(output(o, index, label))
        blocks = iter([block for block, role, _, _ in self.uses if role in ("defaultSelector", "relativeToSelector")])
        for table, t in zip(self.tables, self.data.get("tables") or ()):
            if t.get("default"):
                function, block = next(functions), next(blocks)
                if function is not None:
                    self.default_of(table, block, function)
            if (t.get("window") or {}).get("selector"):
                next(blocks)
                kaspr_tables.set_selector(table, next(functions), None if self.view or self.task else _value_in_progress)
        view = None
        if self.view:
            v = self.view
            kaspr_request.params = tuple(v["params"])
            answers = [code(v[name], outcome) for name, outcome in self._answers]
            view = (kaspr_request.contents[v["contentType"]], v.get("status") or 0, len(v["params"]),
                    tuple(map(tuple, v.get("headers") or ())), kaspr_request.failed(v["contentType"], v.get("debug", False)), *answers)
        source = self.data.get("input") or {}
        return (_program_codecs[source.get("keySerializer") or "raw"], _program_codecs[source.get("valueSerializer") or "json"],
                int(bool(self.data.get("jsonExact"))) | self.task << 1, tuple(ops), tuple(outputs), sources, view)

    def check_words(self):
        """Serializers, and that every operation and output is one thing."""
        def serializers(owner, where):
            for side in ("keySerializer", "valueSerializer"):
                if owner.get(side) and owner[side] not in _program_codecs:
                    self.general("Serializer", f'{side} "{owner[side]}" is not one of {", ".join(_codecs)}', where)
        serializers(self.data.get("input") or {}, "input")
        for op in self.data.get("operations") or ():
            where = f'operation "{op.get("name")}"'
            if sum(bool(op.get(kind)) for kind in ("map", "filter", "topicSend")) != 1:
                self.general("Operation", "an operation has exactly one of map, filter and topicSend", where)
            if op.get("topicSend"):
                serializers(op["topicSend"], where)
        outputs = [(o, f"output {i + 1}") for i, o in enumerate(self.data.get("outputs") or ())]
        outputs += [(op["topicSend"], f'operation "{op.get("name")}"') for op in self.data.get("operations") or () if op.get("topicSend")]
        for o, where in outputs:
            serializers(o, where)
            if bool(o.get("topic")) == bool(o.get("nameSelector")):
                self.general("Output", "an output has exactly one of topic and nameSelector", where)


def _value_in_progress():
    event = _context["event"]
    return (event[0] if isinstance(event, list) else event).value


def check(data):
    """The problems that can be seen without running user code, as JSON; None without problems."""
    program = _Program(data)
    program.check_words()
    program.check_tables()
    program.parse()
    program.check_static()
    return program.report()


def load(data):
    """(problems as JSON, None) or (None, the program for program.c)."""
    program = _Program(data)
    sources = program.sources()
    _kaspr.set_sources(sources)
    program.check_words()
    program.check_tables()
    program.parse()
    spec = None
    if not program.problems:
        program.make_tables()
        program.run()
        if all(block.problem is None for block in program.blocks.values()):
            spec = program.spec(sources)
            if any(block.problem is not None for block in program.blocks.values()):
                spec = None
        else:
            for block, role, arguments, _where in program.uses:
                if block.scope is not None:
                    block.guard(block.function, role, arguments)
    else:
        program.check_static()
    problems = program.report()
    return (problems, None) if problems else (None, spec)
