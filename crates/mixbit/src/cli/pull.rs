//! `mixbit pull`.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use mixbit_app::hub::{Hub, Place, Wish, place};
use serde_json::json;

use super::hub::{locate, settings};
use super::print_line;
use super::progress::Progress;
use super::table::byte_size;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mixbit pull stable-diffusion-v1-5/stable-diffusion-v1-5 --variant fp16
  mixbit pull apple/coreml-stable-diffusion-v1-5/split_einsum/compiled
  mixbit pull OWNER/NAME@REVISION/FILE.safetensors
  mixbit pull https://HOST/FILE.safetensors")]
pub(super) struct Arguments {
    /// Models: OWNER/NAME of the Hugging Face Hub, also with @REVISION and with the path of a file or folder
    /// in it, or an https:// link to a file
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// Which of several weight files to take, such as fp16
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Also the weights of the safety checker, which only `convert` uses
    #[arg(long)]
    safety_checker: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Print only the models' paths
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(arguments: &Arguments, offline: bool) -> anyhow::Result<()> {
    let progress = Progress::new(arguments.quiet);
    let hub = Hub::new(settings(offline))?;
    let wish = Wish {
        variant: arguments.variant.clone(),
        safety_checker: arguments.safety_checker,
        ..Wish::default()
    };
    let mut pulled = Vec::new();
    for name in &arguments.models {
        if let Place::Local(path) = place(name, &hub.settings().endpoint)? {
            match path.exists() {
                true => bail!("{} is a path of this machine: there is nothing to download", path.display()),
                false => bail!("{} is neither OWNER/NAME of the Hub nor an https:// link", path.display()),
            }
        }
        let located = locate(&hub, name, &wish, &progress)?;
        let files =
            if located.files == 1 { "1 file".to_string() } else { format!("{} files", located.files) };
        progress.say(match located.downloaded {
            0 => format!("{}: {files}, there already", name.display()),
            bytes => format!("{}: {files}, {} downloaded", name.display(), byte_size(bytes as usize)),
        });
        if !arguments.json {
            print_line(located.path.display())?;
        }
        pulled.push(json!({
            "name": name.to_string_lossy(),
            "path": located.path.to_string_lossy(),
            "files": located.files,
            "downloaded_bytes": located.downloaded,
        }));
    }
    match arguments.json {
        true => print_line(format_args!("{:#}", json!({"models": pulled}))),
        false => Ok(()),
    }
}
