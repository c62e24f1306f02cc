//! `wasmvm check`: can this host run wasmvm's VMs?
//!
//! Flags are not enough: some hosts offer a `/dev/kvm` that emulates the guest's kernel and cannot run an
//! ordinary one. So after asking for capabilities ([`host`]) a small guest ([`program`], [`guest`])
//! does what Linux does: it enters ring 3, makes a system call, returns, takes an exception. Where the first
//! guest works, a second one ([`probe`]) tries from ring 0 to get what no guest should get.

mod guest;
mod host;
mod probe;
mod program;

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use wasmvm_protocol::error_chain;

/// Path of KVM's device.
const KVM_PATH: &str = "/dev/kvm";
/// Exit status of the check of a host that cannot run guests.
const UNUSABLE: u8 = 1;

/// How good or bad a finding is for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// The host is as guests need it.
    Good,
    /// Guests run; something that would confine guests better is missing.
    Weak,
    /// Guests do not run.
    Bad,
}

/// A finding of the check, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// Whether the finding is good, weak or bad.
    mark: Mark,
    /// The finding in words, without the final full stop.
    sentence: String,
}

impl Finding {
    fn new(mark: Mark, sentence: impl Into<String>) -> Self {
        let sentence = sentence.into();
        Self { mark, sentence }
    }

    fn good(sentence: impl Into<String>) -> Self {
        Self::new(Mark::Good, sentence)
    }

    fn weak(sentence: impl Into<String>) -> Self {
        Self::new(Mark::Weak, sentence)
    }

    fn bad(sentence: impl Into<String>) -> Self {
        Self::new(Mark::Bad, sentence)
    }

    /// Whether this host cannot run guests because of this finding.
    #[must_use]
    fn is_bad(&self) -> bool {
        self.mark == Mark::Bad
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.mark {
            Mark::Good => "ok ",
            Mark::Weak => "low",
            Mark::Bad => "BAD",
        };
        write!(f, "{mark} {}.", self.sentence)
    }
}

/// Writes all findings about this host's KVM and the verdict to `out`, a line each; returns the exit status.
///
/// # Errors
/// `out`'s, when a line cannot be written.
pub(super) fn run(out: &mut impl Write) -> io::Result<ExitCode> {
    Ok(ExitCode::from(if is_fit(out)? { 0 } else { UNUSABLE }))
}

/// Writes what [`run`] writes; returns whether this host can run wasmvm.
///
/// # Errors
/// `out`'s, when a line cannot be written.
pub(super) fn is_fit(out: &mut impl Write) -> io::Result<bool> {
    let findings = check(Path::new(KVM_PATH));
    let verdict = verdict(&findings);
    for finding in findings.iter().chain([&verdict]) {
        out.write_all(format!("{finding}\n").as_bytes())?;
    }
    Ok(!verdict.is_bad())
}

/// All findings about the KVM at `path`, in the order of the checks. Runs guests for at most some seconds each.
#[must_use]
fn check(path: &Path) -> Vec<Finding> {
    let (kvm, opened) = match host::open(path) {
        Ok(opened) => opened,
        Err(finding) => return vec![finding],
    };
    let mut findings = vec![opened];
    findings.extend(host::findings(&kvm));
    match guest::run(kvm) {
        Ok(run) => findings.extend(guest::findings(&run)),
        Err(error) => findings.push(Finding::bad(error_chain(&error))),
    }
    // Not worth a try where the first guest does not run.
    if findings.iter().any(Finding::is_bad) {
        return findings;
    }
    let probed = host::open(path).map(|(kvm, _)| probe::run(kvm, &probe::probes()));
    match probed {
        Ok(Ok((made, end))) => findings.extend(probe::findings(&made, &end)),
        Ok(Err(error)) => findings.push(Finding::bad(error_chain(&error))),
        Err(finding) => findings.push(finding),
    }
    findings
}

/// The check's last line: whether the host can run wasmvm.
#[must_use]
fn verdict(findings: &[Finding]) -> Finding {
    let weak = findings.iter().filter(|finding| finding.mark == Mark::Weak);
    match findings.iter().filter(|finding| finding.is_bad()).count() {
        0 if weak.count() > 0 => Finding::good(
            "this host can run wasmvm; what is marked low above, a newer kernel or processor adds",
        ),
        0 => Finding::good("this host can run wasmvm"),
        1 => Finding::bad("this host cannot run wasmvm, for the one reason above"),
        count => Finding::bad(format!(
            "this host cannot run wasmvm, for the {count} reasons above"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_counts_reasons() {
        let (good, bad) = (Finding::good("a"), Finding::bad("b"));
        assert!(!verdict(std::slice::from_ref(&good)).is_bad());
        let weak = verdict(&[good.clone(), Finding::weak("c")]);
        assert!(!weak.is_bad() && weak.sentence.contains("marked low"));
        assert!(
            verdict(&[good.clone(), bad.clone()])
                .to_string()
                .contains("one reason")
        );
        assert!(
            verdict(&[bad.clone(), bad])
                .to_string()
                .contains("2 reasons")
        );
        assert_eq!(good.to_string(), "ok  a.");
    }

    #[test]
    fn without_kvm_there_is_one_finding() {
        let findings = check(Path::new("/nonexistent/kvm"));
        assert_eq!(findings.len(), 1);
        assert!(verdict(&findings).is_bad());
    }
}
