// The app as a graph: topics, agents, web views and tables, each in a column right of all it comes from.

export function graph(overview) {
  const nodes = new Map();
  const edges = [];
  const node = (kind, name) => {
    const id = `${kind}:${name}`;
    if (!nodes.has(id)) nodes.set(id, { id, kind, name, column: 0 });
    return id;
  };
  const internal = new Set(overview.topics.filter((t) => t.internal).map((t) => t.name));
  for (const part of overview.parts) {
    if (part.writer) continue; // an agent of ours; its table shows what it does
    const agent = node("agent", part.agent);
    for (const t of part.inputs) edges.push([node("topic", t), agent]);
    for (const t of part.tables) edges.push([agent, node("table", t)]);
    for (const t of part.outputTopics) {
      if (internal.has(t) && !overview.parts.some((p) => !p.writer && p.inputs.includes(t))) continue; // writes of tables
      edges.push([agent, node("topic", t)]);
    }
  }
  for (const v of overview.views) {
    const view = node("view", v.view);
    for (const t of v.tables) edges.push([view, node("table", t)]);
    for (const t of v.outputTopics) edges.push([view, node("topic", t)]);
  }
  for (const t of overview.tableList) if (!t.internal) node("table", t.name);
  // Longest way from the left. An edge that closes a circle counts for nothing.
  const closing = new Set();
  const state = new Map();
  const visit = (id) => {
    state.set(id, "open");
    for (const edge of edges) {
      if (edge[0] !== id) continue;
      if (state.get(edge[1]) === "open") closing.add(edge);
      else if (!state.has(edge[1])) visit(edge[1]);
    }
    state.set(id, "done");
  };
  for (const id of nodes.keys()) if (!state.has(id)) visit(id);
  for (let moved = true; moved; ) {
    moved = false;
    for (const edge of edges) {
      const column = nodes.get(edge[0]).column + 1;
      if (!closing.has(edge) && nodes.get(edge[1]).column < column) {
        nodes.get(edge[1]).column = column;
        moved = true;
      }
    }
  }
  const used = [...new Set([...nodes.values()].map((n) => n.column))].sort((a, b) => a - b);
  const rows = used.map(() => 0);
  for (const n of nodes.values()) {
    n.column = used.indexOf(n.column);
    n.row = rows[n.column]++;
  }
  return { nodes: [...nodes.values()], edges: edges.map(([from, to]) => ({ from: nodes.get(from), to: nodes.get(to) })), columns: rows.length, rows: Math.max(1, ...rows) };
}
