//! Container images without a container runtime: one program in one layer, as a docker archive.
//!
//! `docker load`, `podman load` and `ctr images import` read these archives. Nothing is pulled or pushed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::cargo;
use crate::process;

/// The user that the program runs as: nobody in particular, as restricted pods demand.
const USER: u32 = 65532;
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What `cargo xtask image` takes.
#[derive(Args)]
pub struct Options {
    /// Folder for the archives [default: images/ in the target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only this program's image: carillon or carillon-operator
    #[arg(long, value_name = "PROGRAM", value_parser = ["carillon", "carillon-operator"])]
    only: Option<String>,
    /// Optimise, as for a release
    #[arg(long)]
    release: bool,
}

/// An image that was written.
pub struct Image {
    /// Its name, as in a pod's manifest.
    pub tag: String,
    /// The docker archive.
    pub archive: PathBuf,
    /// The variable by which tests learn the name.
    pub variable: &'static str,
}

struct Kind {
    /// The package, the binary, and the image's name.
    program: &'static str,
    variable: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        program: "carillon",
        variable: "CARILLON_TEST_IMAGE",
    },
    Kind {
        program: "carillon-operator",
        variable: "CARILLON_TEST_OPERATOR_IMAGE",
    },
];

/// Builds static programs, writes their images, and says where.
pub fn run(options: &Options) -> Result<()> {
    let only = options.only.as_deref();
    for image in build(only, options.release, options.out.as_deref())? {
        let size = std::fs::metadata(&image.archive)?.len();
        println!(
            "{}  {}  {:.1} MB",
            image.tag,
            image.archive.display(),
            size as f64 / 1e6
        );
    }
    Ok(())
}

/// Builds static programs, or only one of them, and writes their images: what users run is what the tests run.
pub fn build(only: Option<&str>, release: bool, out: Option<&Path>) -> Result<Vec<Image>> {
    KINDS
        .iter()
        .filter(|kind| only.is_none_or(|program| kind.program == program))
        .map(|kind| {
            let build = process::step(
                &format!("build {} as a static program", kind.program),
                || {
                    let mut command = process::cargo();
                    command.args(["rustc", "-p", kind.program, "--bin", kind.program]);
                    if release {
                        command.arg("--release");
                    }
                    // Only the last step differs from an ordinary build of the package, so dependencies are shared with it.
                    cargo::collect_with(&mut command, &["-C", "target-feature=+crt-static"])
                },
            )?;
            let program = build.binary(kind.program)?;
            if !is_static(program)? {
                bail!(
                    "{} is not static: the toolchain ignored +crt-static",
                    program.display()
                );
            }
            write(
                kind,
                program,
                &out.map_or_else(|| default_out(program), Path::to_path_buf),
            )
        })
        .collect()
}

/// `images` beside the profile's folder: `target/debug/carillon` gives `target/images`.
fn default_out(program: &Path) -> PathBuf {
    program
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new("."))
        .join("images")
}

fn write(kind: &Kind, program: &Path, out: &Path) -> Result<Image> {
    std::fs::create_dir_all(out).with_context(|| format!("can't make {}", out.display()))?;
    let tag = format!(
        "carillon.local/{}:{}",
        kind.program,
        env!("CARGO_PKG_VERSION")
    );
    let archive = out.join(format!("{}.tar", kind.program));
    let stripped = out.join(format!("{}.stripped", kind.program));
    let layer = out.join(format!("{}.layer", kind.program));
    strip(program, &stripped)?;
    write_layer(&layer, kind.program, &stripped)?;
    write_archive(&archive, &layer, &tag, kind.program)?;
    for temporary in [stripped, layer] {
        std::fs::remove_file(&temporary)
            .with_context(|| format!("can't remove {}", temporary.display()))?;
    }
    Ok(Image {
        tag,
        archive,
        variable: kind.variable,
    })
}

/// Copies the program without its debugging symbols; with them where `strip` is missing.
fn strip(program: &Path, to: &Path) -> Result<()> {
    let stripped = Command::new("strip")
        .arg("--strip-debug")
        .arg("-o")
        .arg(to)
        .arg(program)
        .stderr(Stdio::null())
        .status();
    if !stripped.is_ok_and(|status| status.success()) {
        std::fs::copy(program, to)
            .with_context(|| format!("can't copy {} to {}", program.display(), to.display()))?;
    }
    Ok(())
}

/// Whether the program needs no shared library and no loader.
fn is_static(program: &Path) -> Result<bool> {
    let ldd = Command::new("ldd")
        .arg(program)
        .output()
        .context("can't start ldd, which says what a program is linked with")?;
    let said =
        String::from_utf8_lossy(&ldd.stdout).into_owned() + &String::from_utf8_lossy(&ldd.stderr);
    Ok(said.contains("not a dynamic executable") || said.contains("statically linked"))
}

fn write_layer(to: &Path, name: &str, program: &Path) -> Result<()> {
    let mut layer = Layer::create(to)?;
    layer.folder("tmp", 0o1777)?;
    layer.text(
        "etc/passwd",
        &format!("root:x:0:0:root:/:/\nnonroot:x:{USER}:{USER}::/:/\n"),
    )?;
    layer.text("etc/group", &format!("root:x:0:\nnonroot:x:{USER}:\n"))?;
    if Path::new(CERTIFICATES).exists() {
        layer.file(CERTIFICATES, Path::new(CERTIFICATES), 0o644)?;
    }
    layer.file(name, program, 0o755)?;
    layer.finish()
}

/// A tar file that depends on nothing but its content: no owner, no time.
struct Layer {
    tar: Builder<BufWriter<File>>,
    folders: BTreeSet<PathBuf>,
}

impl Layer {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("can't write {}", path.display()))?;
        Ok(Self {
            tar: Builder::new(BufWriter::new(file)),
            folders: BTreeSet::new(),
        })
    }

    fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        if self.folders.insert(path.into()) {
            let mut header = header(mode, 0);
            header.set_entry_type(EntryType::Directory);
            self.tar
                .append_data(&mut header, format!("{path}/"), io::empty())?;
        }
        Ok(())
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        let mut folders: Vec<&Path> = Path::new(path)
            .ancestors()
            .skip(1)
            .filter(|folder| !folder.as_os_str().is_empty())
            .collect();
        folders.reverse();
        folders
            .iter()
            .try_for_each(|folder| self.folder(&folder.to_string_lossy(), 0o755))
    }

    fn text(&mut self, path: &str, text: &str) -> Result<()> {
        self.parents(path)?;
        Ok(self
            .tar
            .append_data(&mut header(0o644, text.len() as u64), path, text.as_bytes())?)
    }

    fn file(&mut self, path: &str, from: &Path, mode: u32) -> Result<()> {
        let path = path.trim_start_matches('/');
        self.parents(path)?;
        let file = File::open(from).with_context(|| format!("can't read {}", from.display()))?;
        let size = file.metadata()?.len();
        Ok(self.tar.append_data(&mut header(mode, size), path, file)?)
    }

    fn finish(self) -> Result<()> {
        Ok(self.tar.into_inner()?.flush()?)
    }
}

fn header(mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// The archive: a manifest, the configuration it names, and the layer, named by what they hash to.
fn write_archive(to: &Path, layer: &Path, tag: &str, program: &str) -> Result<()> {
    let layer_digest = digest(File::open(layer)?)?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let configuration = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": [format!("/{program}")],
            "User": format!("{USER}:{USER}"),
            "Env": ["PATH=/", format!("SSL_CERT_FILE={CERTIFICATES}")],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": program,
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
    }))?;
    let configuration_name = format!("{}.json", digest(configuration.as_slice())?);
    let layer_name = format!("{layer_digest}/layer.tar");
    let manifest = serde_json::to_string(
        &json!([{ "Config": configuration_name, "RepoTags": [tag], "Layers": [layer_name] }]),
    )?;
    let mut archive = Layer::create(to)?;
    archive.text("manifest.json", &manifest)?;
    archive.text(&configuration_name, &String::from_utf8(configuration)?)?;
    archive.file(&layer_name, layer, 0o644)?;
    archive.finish()
}

fn digest(mut from: impl Read) -> Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut from, &mut hasher)?;
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeMap;

    fn entries(tar: impl Read) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (
                entry.path().unwrap().display().to_string(),
                (entry.header().mode().unwrap(), content),
            )
        });
        entries.collect()
    }

    #[test]
    fn an_archive_names_its_parts_by_their_digests() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("carillon");
        std::fs::write(&program, "not really a program").unwrap();
        let layer = folder.path().join("layer");
        write_layer(&layer, "carillon", &program).unwrap();
        let archive = folder.path().join("carillon.tar");
        write_archive(&archive, &layer, "carillon.local/carillon:1", "carillon").unwrap();

        let parts = entries(File::open(&archive).unwrap());
        let manifest: Value = serde_json::from_slice(&parts["manifest.json"].1).unwrap();
        assert_eq!(
            manifest[0]["RepoTags"],
            json!(["carillon.local/carillon:1"])
        );
        let configuration_name = manifest[0]["Config"].as_str().unwrap();
        let configuration = &parts[configuration_name].1;
        assert_eq!(
            configuration_name,
            format!("{}.json", digest(configuration.as_slice()).unwrap())
        );
        let layer_content = &parts[manifest[0]["Layers"][0].as_str().unwrap()].1;
        let configuration: Value = serde_json::from_slice(configuration).unwrap();
        assert_eq!(
            configuration["rootfs"]["diff_ids"],
            json!([format!(
                "sha256:{}",
                digest(layer_content.as_slice()).unwrap()
            )])
        );
        assert_eq!(configuration["config"]["User"], "65532:65532");

        let files = entries(layer_content.as_slice());
        assert_eq!(files["carillon"], (0o755, b"not really a program".to_vec()));
        assert_eq!(files["tmp/"].0, 0o1777);
        assert!(String::from_utf8_lossy(&files["etc/passwd"].1).contains("nonroot:x:65532:65532"));
    }

    #[test]
    fn the_same_content_gives_the_same_layer() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("carillon");
        std::fs::write(&program, "x").unwrap();
        let layers = ["first", "second"].map(|name| {
            let layer = folder.path().join(name);
            write_layer(&layer, "carillon", &program).unwrap();
            std::fs::read(layer).unwrap()
        });
        assert_eq!(layers[0], layers[1]);
    }
}
