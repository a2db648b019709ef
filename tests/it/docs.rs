//! The commands of the README work as they stand.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::world::platform::Up;

/// The block of the README that talks to a running platform, against one.
#[tokio::test(flavor = "multi_thread")]
async fn the_readme_talks_to_a_platform() -> Result<()> {
    let readme = include_str!("../../README.md");
    let block = readme
        .split("```sh\n")
        .filter_map(|rest| rest.split_once("```").map(|(block, _)| block))
        .find(|block| block.starts_with("api="))
        .context("the README has no block that begins with api=")?;
    // The defaults of a newcomer, limits included.
    let up = Up::start(" {}").await?;
    let script = block.replace("http://127.0.0.1:8080", &up.base);
    ensure!(script != block, "the README speaks to another address");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let last = said.lines().last().unwrap_or_default();
    ensure!(
        last.contains("\"items\":[") && last.contains("\"hello\""),
        "{said}"
    );
    Ok(())
}
