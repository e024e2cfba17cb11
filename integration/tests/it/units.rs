//! The units of systemd that we ship: they say what the daemon understands, and systemd understands them.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use integration::{
    lab::Lab,
    machine::{binaries, ensure_debian, root},
    process::output,
};

const LIMIT: Duration = Duration::from_secs(60);
const PROGRAM: &str = "/usr/local/bin/soci-snapshotter-grpc";

#[test]
fn units_are_understood_by_systemd_and_by_the_daemon() -> Result<()> {
    ensure_debian(&["systemd"])?;
    let lab = Lab::new("units")?;
    let folder = root().join("snapshotter/systemd");
    let service = fs::read_to_string(folder.join("soci-snapshotter.service"))?;
    let socket = fs::read_to_string(folder.join("soci-snapshotter.socket"))?;
    let program = binaries()?.daemon;
    // systemd looks whether the program is there.
    let installed = service.replace(PROGRAM, &program.display().to_string());
    ensure!(installed != service);
    for (name, text) in [("soci-snapshotter.service", &installed), ("soci-snapshotter.socket", &socket)] {
        fs::write(lab.path().join(name), text)?;
    }
    let mut verify = lab.command("systemd-analyze");
    verify.arg("verify").arg(lab.path().join("soci-snapshotter.service"));
    let verified = output(verify, LIMIT)?;
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    // One key is of a newer systemd, which the older ones leave out, as the unit says.
    let about_ours =
        |line: &&str| line.contains("soci-snapshotter") && !line.contains("FileDescriptorStorePreserve");
    let complaints: Vec<_> = said.lines().filter(about_ours).collect();
    ensure!(complaints.is_empty(), "{complaints:?}");

    let start = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap_or_default();
    let mut command = lab.command(&program);
    command.args(start.split_whitespace().skip(1)).arg("--version");
    ensure!(output(command, LIMIT)?.status.success(), "{start}");
    let mut help = lab.command(&program);
    help.arg("--help");
    let help = String::from_utf8(output(help, LIMIT)?.stdout)?;
    let listened = socket.lines().find_map(|line| line.strip_prefix("ListenStream=")).unwrap_or_default();
    ensure!(!listened.is_empty() && help.contains(listened), "{listened} is the default address");
    Ok(())
}
