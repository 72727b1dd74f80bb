//! Pages of text of a fleet and of a node: what is wrong comes first. Pure; nothing that a node has written reaches the
//! terminal's controls.

use std::time::Duration;

use crate::cli::output::{bytes, count, plain, rate};
use crate::protocol::fleet::{Fleet, NodeDocument, Standing};
use crate::protocol::report::{Gpu, NodeReport, Start, Transfer, UnixMillis, Warmth};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Fleet,
    /// The node that was chosen.
    Node,
}

const HELP: &str = "q quit  up/down choose  n node  f fleet";
const HEAD: [&str; 8] = ["NODE", "STATE", "WHERE", "STARTS", "SAVED", "RECEIVED", "SENT", "FREE"];
/// With a space between them and a mark at the end, 80 columns.
const COLUMNS: [usize; 8] = [17, 8, 9, 7, 7, 8, 8, 8];

/// `at` is the node that is chosen, counted in the order of the page; without a height there is no end to it.
pub(super) fn page(
    fleet: &Fleet,
    view: View,
    at: usize,
    (width, height): (usize, Option<usize>),
    now: UnixMillis,
) -> Vec<String> {
    let nodes = ordered(fleet);
    let at = at.min(nodes.len().saturating_sub(1));
    let mut lines = match (view, nodes.get(at)) {
        (View::Node, Some(node)) => node_page(node, now, width),
        _ => fleet_page(fleet, &nodes, height.map(|height| (at, height.saturating_sub(1)))),
    };
    if let Some(height) = height {
        lines.truncate(height.saturating_sub(1));
        lines.push(HELP.to_owned());
    }
    lines.iter().map(|line| cut(&plain(line), width)).collect()
}

/// Nodes with problems first, then by name.
fn ordered(fleet: &Fleet) -> Vec<&NodeDocument> {
    let mut nodes: Vec<&NodeDocument> = fleet.nodes.iter().collect();
    nodes.sort_by_cached_key(|node| {
        let problems = node.report.as_ref().map_or(0, |report| report.problems.len());
        (node.state == Standing::Stale, std::cmp::Reverse(problems), node.called(), node.id)
    });
    nodes
}

fn fleet_page(fleet: &Fleet, nodes: &[&NodeDocument], room: Option<(usize, usize)>) -> Vec<String> {
    let mut lines = vec![summary(fleet)];
    if !fleet.limited.is_empty() {
        lines.push(format!("note: {}", fleet.limited));
    }
    let known = || nodes.iter().filter_map(|node| Some((*node, node.report.as_ref()?)));
    let live = known().filter(|(node, _)| node.state != Standing::Stale);
    let problems = live.clone().flat_map(|(node, report)| {
        report.problems.iter().map(move |problem| format!("! {}: {}", node.called(), problem.text))
    });
    let transfers = live.flat_map(|(node, report)| {
        report.transfers.iter().map(move |transfer| format!("{}: {}", node.called(), fetching(transfer)))
    });
    let share = room.map_or(usize::MAX, |(_, height)| height / 4);
    lines.extend(some(problems.collect(), share, "problems"));
    let transfers = some(transfers.collect(), share, "transfers");
    let left = room.map(|(at, height)| (at, height.saturating_sub(lines.len() + transfers.len() + 1)));
    lines.push(row(HEAD.map(str::to_owned)));
    let (first, shown) = left.map_or((0, usize::MAX), |(at, left)| ((at + 1).saturating_sub(left), left));
    for (index, node) in nodes.iter().enumerate().skip(first).take(shown) {
        let mark = if left.is_some_and(|(at, _)| at == index) { ">" } else { " " };
        lines.push(format!("{}{mark}", node_row(node)));
    }
    lines.extend(transfers);
    if nodes.is_empty() {
        lines.push("no node has announced itself yet: is `metadata.servers` of the agents this server?".to_owned());
    }
    lines
}

/// As many as there is room for.
fn some(mut lines: Vec<String>, most: usize, noun: &str) -> Vec<String> {
    if lines.len() > most {
        let left_out = lines.len() - most.saturating_sub(1);
        lines.truncate(most.saturating_sub(1));
        lines.push(format!("and {left_out} more {noun}"));
    }
    lines
}

fn summary(fleet: &Fleet) -> String {
    let Some(server) = &fleet.server else { return count(fleet.nodes.len() as u64, "node") };
    format!(
        "{}: {} ({} ready, {} draining), {} of {}",
        server.name,
        count(server.nodes as u64, "node"),
        server.ready,
        server.draining,
        count(server.artifacts as u64, "artifact"),
        match server.identities {
            1 => "1 identity".to_owned(),
            identities => format!("{identities} identities"),
        }
    )
}

fn node_row(node: &NodeDocument) -> String {
    let place = [&node.zone, &node.rack].map(|name| name.as_str()).into_iter().filter(|name| !name.is_empty());
    let place = place.collect::<Vec<_>>().join("/");
    let state = word(node.state);
    let Some(report) = &node.report else {
        return row([node.called(), state, place].into_iter().chain((0..5).map(|_| "-".to_owned())));
    };
    let with = |warmth| report.starts.iter().filter(|start| start.outcome == warmth).count();
    let starts = format!("{}/{}/{}", with(Warmth::Warm), with(Warmth::Partly), with(Warmth::Cold));
    let saved = report.starts.iter().map(|start| start.saved).sum();
    row([
        node.called(),
        state,
        place,
        starts,
        span(saved),
        size(report.totals.received),
        size(report.totals.sent),
        size(report.disk.free),
    ])
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    let cells = cells.into_iter().zip(COLUMNS).enumerate().map(|(column, (cell, width))| {
        let cell = cut(&cell, width);
        if column < 4 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    });
    cells.collect::<Vec<_>>().join(" ")
}

fn node_page(node: &NodeDocument, now: UnixMillis, width: usize) -> Vec<String> {
    let state = word(node.state);
    let endpoint = node.endpoint.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut lines = vec![format!("{} {state} {endpoint} {}", node.called(), node.id)];
    lines.extend(problems(node, width));
    let Some(report) = &node.report else {
        lines.push("nothing is told of this node here".to_owned());
        return lines;
    };
    let policy = report.policy.map_or_else(|| "none".to_owned(), |policy| format!("version {}", policy.version));
    let up = span(report.started_at.ago(now));
    let discovery = word(report.discovery);
    lines.push(format!("warmd {}, up {up}, policy {policy}, discovery {discovery}", report.version));
    lines.push(format!(
        "received {}, sent {}; store {}, {} free",
        bytes(report.totals.received),
        bytes(report.totals.sent),
        bytes(report.disk.used),
        bytes(report.disk.free)
    ));
    lines.extend(activity(node, now, width));
    lines
}

/// What is wrong with a node, each with the way out.
pub(super) fn problems(node: &NodeDocument, width: usize) -> Vec<String> {
    let problems = node.report.iter().flat_map(|report| &report.problems);
    let lines = problems.flat_map(|problem| [format!("problem: {}", problem.text), format!("  {}", problem.way_out)]);
    lines.map(|line| cut(&plain(&line), width)).collect()
}

/// What a node's GPUs do, what it fetches, and how its last starts were.
pub(super) fn activity(node: &NodeDocument, now: UnixMillis, width: usize) -> Vec<String> {
    let Some(report) = &node.report else { return Vec::new() };
    let starts = report.starts.iter().rev().flat_map(|start| started(start, now));
    let lines = report.gpus.iter().map(gpu).chain(transfers(report)).chain(starts);
    lines.map(|line| cut(&plain(&line), width)).collect()
}

fn gpu(gpu: &Gpu) -> String {
    let utilization = gpu.utilization.map(|percent| format!("{percent} used"));
    let memory = gpu.memory.map(|memory| format!("{} of {}", bytes(memory.used), bytes(memory.total)));
    let told = utilization.into_iter().chain(memory).collect::<Vec<_>>();
    let told = if told.is_empty() { "not told what it does".to_owned() } else { told.join(", ") };
    format!("gpu {:<6}{}: {told}", gpu.index, gpu.name)
}

fn transfers(report: &NodeReport) -> Vec<String> {
    let mut lines = Vec::new();
    for transfer in &report.transfers {
        lines.push(format!("fetching  {}", fetching(transfer)));
        let holders = transfer.holders.iter().map(|holder| format!("{} {}", holder.node.short(), bytes(holder.bytes)));
        let holders = holders.collect::<Vec<_>>().join(", ");
        lines.extend((!holders.is_empty()).then(|| format!("          from {holders}")));
    }
    lines
}

fn fetching(transfer: &Transfer) -> String {
    let percent = (u128::from(transfer.done) * 100).checked_div(u128::from(transfer.total)).unwrap_or(0);
    let rate = transfer.rate.map_or_else(|| "no rate yet".to_owned(), |bytes| rate(bytes, 1.0));
    let left = transfer.eta.map_or_else(String::new, |eta| format!(", {} left", span(eta)));
    let (family, artifact) = (&transfer.family, transfer.artifact.short());
    format!("{family} {artifact} {percent} % of {}, {rate}{left}", bytes(transfer.total))
}

fn started(start: &Start, now: UnixMillis) -> Vec<String> {
    let outcome = word(start.outcome);
    let end = match start.ready {
        Some(ready) => format!("ready after {}", span(ready)),
        None => word(start.end),
    };
    let saved = if start.saved.is_zero() { String::new() } else { format!(", saved {}", span(start.saved)) };
    let mut lines = vec![format!("started   {outcome}, {} ago: {end}{saved}", span(start.at.ago(now)))];
    for family in start.families.iter().filter(|family| family.recompiled > 0 || family.reason.is_some()) {
        let reason = family.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        lines.push(format!("          {}: {} compiled here{reason}", family.family, family.recompiled));
    }
    lines
}

/// A variant's name.
fn word(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// In one unit.
fn span(time: Duration) -> String {
    match time.as_secs() {
        0 if time.is_zero() => "0 s".to_owned(),
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 10..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// In at most eight characters.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    // Only for people: what a float rounds away is not shown.
    let number = bytes as f64 / f64::from(1u32 << 10).powi(unit as i32);
    if number < 10.0 && unit > 0 {
        format!("{number:.1} {}", UNITS[unit])
    } else {
        format!("{number:.0} {}", UNITS[unit])
    }
}

/// To so many characters.
fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width { line.trim_end().to_owned() } else { line.chars().take(width).collect() }
}

#[cfg(test)]
mod tests;
