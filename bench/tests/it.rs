//! The load generator on its own bare server: is what it counts right?

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str], json: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_carillon-bench"))
        .args(arguments)
        .args(["--quiet", "--patience", "20", "--json"])
        .arg(json)
        .output()
        .unwrap()
}

fn figure(measurement: &Value, name: &str) -> f64 {
    let figures = measurement["figures"].as_array().unwrap();
    let found = figures.iter().find(|figure| figure["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {measurement}"))["value"]
        .as_f64()
        .unwrap()
}

fn check<'a>(measurement: &'a Value, name: &str) -> &'a Value {
    let checks = measurement["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap()
}

/// One first message, then 50 at saturation and 50 at half load, to 5 members: 505 deliveries, and every check holds.
#[test]
fn fan_out_on_a_bare_server_counts_every_delivery_once() {
    let directory = tempfile::tempdir().unwrap();
    for mode in ["per-message", "joined"] {
        let json = directory.path().join(mode);
        let output = bench(
            &[
                "fanout",
                "--bare",
                mode,
                "--members",
                "5",
                "--messages",
                "50",
                "--windows",
                "8",
                "--senders",
                "2",
            ],
            &json,
        );
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{stdout}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(stdout.contains("checks: 6 of 6 held"), "{stdout}");
        let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        let measurement = &report["measurements"][0];
        assert_eq!(
            check(measurement, "every message delivered to every reader")["detail"],
            "505 of 505"
        );
        assert_eq!(
            check(measurement, "every message acknowledged once")["detail"],
            "101 of 101"
        );
        assert!(figure(measurement, "deliveries/s, saturated") > 0.0);
        // The first tenth of the 50 at half load is not kept; how the clock cuts it may cost one message more or less.
        let samples = figure(measurement, "latency samples");
        assert!((200.0..=250.0).contains(&samples), "{samples}");
    }
}

#[test]
fn idle_sockets_on_a_bare_server_are_all_alive() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("json");
    let output = bench(
        &["idle", "--bare", "joined", "--sockets", "30", "--hold", "0"],
        &json,
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let measurement = &report["measurements"][0];
    assert_eq!(figure(measurement, "sockets"), 30.0);
    assert!(figure(measurement, "server RSS after, MiB") > 0.5);
    assert_eq!(
        check(measurement, "every socket answers a ping after the hold")["detail"],
        "30 of 30"
    );
}

/// A server that is not there is an error that names the address, not a figure.
#[test]
fn a_target_that_does_not_answer_is_an_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("json");
    let target = format!("http://{address}");
    let output = bench(&["idle", "--target", &target, "--sockets", "1"], &json);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains(&address.to_string()), "{stderr}");
}

/// A peer that was asked for and is not there is an error that says what to do, not a missing column.
#[test]
fn a_peer_that_is_not_installed_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let installed = directory.path().to_str().unwrap();
    let json = directory.path().join("json");
    let output = bench(
        &[
            "peers",
            "--server",
            "carillon",
            "--peers",
            "nats,go-hub",
            "--installed",
            installed,
        ],
        &json,
    );
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in ["nats/nats-server", "go-hub/go-hub", "bench/peers/install"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(!json.exists());
}

/// Runs a scenario that needs the platform, on the `carillon` beside this program; its one measurement, with every check held.
fn on_the_platform(arguments: &[&str]) -> Value {
    let own = Path::new(env!("CARGO_BIN_EXE_carillon-bench"));
    let server = std::env::var_os("CARILLON_BIN")
        .map_or_else(|| own.with_file_name("carillon"), std::path::PathBuf::from);
    assert!(
        server.is_file(),
        "{} is not built: run `cargo build -p carillon`, or `cargo xtask test`",
        server.display()
    );
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("json");
    let server = server.to_str().unwrap();
    let scratch = directory.path().to_str().unwrap();
    let common = ["--server", server, "--scratch", scratch];
    let output = bench(&[arguments, &common].concat(), &json);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stdout}{stderr}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    report["measurements"][0].clone()
}

/// Sockets that are cut off come back and get every message that was sent meanwhile, once.
#[test]
fn a_storm_ends_with_everybody_level() {
    let storm = on_the_platform(&[
        "storm",
        "--sockets",
        "40",
        "--rooms",
        "2",
        "--rate",
        "50",
        "--seconds",
        "1",
        "--storm-seconds",
        "15",
    ]);
    let delivered = check(&storm, "every message delivered to every reader");
    assert_eq!(delivered["detail"], "16000 of 16000");
    assert!(figure(&storm, "caught up after, p99 ms") > 0.0);
}

/// A reader that is slower than its room is cut off with 4008 and gets everything by resuming; the others lose nothing.
#[test]
fn a_slow_reader_is_cut_off_and_resumes() {
    let slow = on_the_platform(&[
        "slow",
        "--members",
        "3",
        "--senders",
        "2",
        "--slow",
        "1",
        "--rate",
        "400",
        "--content-bytes",
        "8000",
        "--seconds",
        "6",
    ]);
    assert!(figure(&slow, "times cut off (4008)") >= 1.0);
    // One first message, and three times 400 a second to 3 members.
    let delivered = check(&slow, "every message delivered to every reader");
    assert_eq!(delivered["detail"], "21603 of 21603");
}

/// Every part of it, in small.
#[test]
fn large_and_small_rooms_are_set_side_by_side() {
    let pages = on_the_platform(&[
        "big",
        "--messages",
        "3000",
        "--rate",
        "100",
        "--seconds",
        "1",
        "--members",
        "20",
        "--joins",
        "5",
        "--rooms",
        "120",
        "--room-messages",
        "3",
        "--rounds",
        "2",
    ]);
    assert!(figure(&pages, "page, p99: large / small") > 0.0);
    assert_eq!(
        check(&pages, "every message of the filling acknowledged")["detail"],
        "3000 of 3000"
    );
}

#[test]
fn every_kind_of_request_is_answered() {
    let answers = on_the_platform(&[
        "answers",
        "--people",
        "10",
        "--rooms",
        "2",
        "--rate",
        "100",
        "--seconds",
        "2",
    ]);
    assert_eq!(
        check(&answers, "every request answered with success")["detail"],
        "200 of 200"
    );
    for kind in ["REST send", "REST history", "socket send", "socket typing"] {
        assert!(figure(&answers, &format!("{kind}: p99 ms")) > 0.0);
    }
}
