//! `mixbit models`.

use clap::Args;
use mixbit_app::hub::{Kept, Settings, kept, remove};
use serde_json::{Value, json};

use super::hub::settings;
use super::print_line;
use super::table::{Side, Table, byte_size};

#[derive(Debug, Args)]
#[command(after_help = "The Hub's cache is shared with other programs: what is removed is gone for them too.

Examples:
  mixbit models
  mixbit models --remove OWNER/NAME")]
pub(super) struct Arguments {
    /// Remove these models, by the names that the list has
    #[arg(long, value_name = "NAME", num_args = 1..)]
    remove: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = settings(true);
    if arguments.remove.is_empty() {
        return list(&settings, arguments.json);
    }
    let mut removed = Vec::new();
    for name in &arguments.remove {
        for kept in remove(&settings, name)? {
            if !arguments.json {
                print_line(format_args!("{}: {} removed", kept.name, byte_size(kept.bytes as usize)))?;
            }
            removed.push(to_json(&kept));
        }
    }
    match arguments.json {
        true => print_line(format_args!("{:#}", json!({"removed": removed}))),
        false => Ok(()),
    }
}

fn list(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let models = kept(settings);
    let total: u64 = models.iter().map(|kept| kept.bytes).sum();
    if json {
        let models: Vec<Value> = models.iter().map(to_json).collect();
        return print_line(format_args!(
            "{:#}",
            json!({
                "models": models,
                "bytes": total,
                "hub_cache": settings.cache.to_string_lossy(),
                "own_cache": settings.own_cache.to_string_lossy(),
            })
        ));
    }
    let places = format!("{}, {}", settings.cache.display(), settings.own_cache.display());
    if models.is_empty() {
        return print_line(format_args!("no models in {places}"));
    }
    let mut table = Table::new([
        ("size", Side::Right),
        ("kind", Side::Left),
        ("cache", Side::Left),
        ("revisions", Side::Left),
        ("model", Side::Left),
    ]);
    for model in &models {
        let size = byte_size(model.bytes as usize);
        let kind = match model.partial {
            0 => model.kind.to_string(),
            partial => format!("{}, {} unfinished", model.kind, byte_size(partial as usize)),
        };
        let (cache, revisions) = (model.kept_in.name().to_string(), model.revisions.join(" "));
        table.row([size, kind, cache, revisions, model.name.clone()]);
    }
    print_line(table)?;
    print_line(format_args!("{} in {places}", byte_size(total as usize)))
}

fn to_json(kept: &Kept) -> Value {
    json!({
        "name": kept.name,
        "cache": kept.kept_in.name(),
        "kind": kept.kind,
        "path": kept.path.to_string_lossy(),
        "bytes": kept.bytes,
        "unfinished_bytes": kept.partial,
        "revisions": kept.revisions,
    })
}
