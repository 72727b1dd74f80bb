//! `warmd config show`.

use serde_json::{Map, json};

use super::Read;
use crate::cli::output;
use crate::config::difference;

pub(super) fn print(read: &Read, with_origin: bool, json: bool) -> anyhow::Result<()> {
    if json && !with_origin {
        return output::json(&read.table);
    }
    if !with_origin {
        return output::line(&read.text);
    }
    let values = difference::values(&read.table);
    if json {
        let value = |(key, value): (String, toml::Value)| {
            let origin = read.origins.of(&key).to_string();
            (key, json!({ "value": value, "origin": origin }))
        };
        return output::json(&values.into_iter().map(value).collect::<Map<_, _>>());
    }
    output::line(
        "# A flag counts more than a variable (WARMD_SECTION_KEY), that more than the file, that more than the default.",
    )?;
    let row =
        |(key, value): (&String, &toml::Value)| vec![key.clone(), value.to_string(), read.origins.of(key).to_string()];
    let head = ["KEY", "VALUE", "ORIGIN"].map(str::to_owned).to_vec();
    output::table(&[head].into_iter().chain(values.iter().map(row)).collect::<Vec<_>>())
}
