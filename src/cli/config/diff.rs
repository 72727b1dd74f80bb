//! `warmd config diff`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use super::{Role, read, running};
use crate::cli::{Socket, output};
use crate::config::difference::{self, Difference};

/// Parts of an agent's file that its agent does not run.
const SERVED: [&str; 2] = ["engine", "serve"];

/// Code 1 if something differs.
pub(super) async fn run(
    role: Role,
    a: &Path,
    b: Option<&Path>,
    socket: &Socket,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut before = read(role, Some(a), None)?.table;
    let after = match b {
        Some(b) => read(role, Some(b), None)?.table,
        None => {
            if role == Role::Agent {
                SERVED.iter().for_each(|section| _ = before.remove(*section));
            }
            let running = running::configuration(role, Some(a), socket).await?;
            running.parse().context("the configuration of the role that runs")?
        }
    };
    let differences = difference::between(&before, &after);
    if json {
        output::json(&differences)?;
    } else if !differences.is_empty() {
        let b = b.map_or_else(|| "the role that runs".to_owned(), |b| b.display().to_string());
        let head = vec!["KEY".to_owned(), a.display().to_string(), b];
        let rows: Vec<Vec<String>> = [head].into_iter().chain(differences.iter().map(row)).collect();
        output::table(&rows)?;
    }
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(difference: &Difference) -> Vec<String> {
    let value = |value: &Option<toml::Value>| {
        value.as_ref().map_or_else(|| "-".to_owned(), |value| output::plain(&value.to_string()))
    };
    vec![difference.key.clone(), value(&difference.a), value(&difference.b)]
}
