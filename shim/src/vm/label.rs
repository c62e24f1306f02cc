//! Checks that the host has the security module that a label is for.

use std::path::Path;

use crate::bundle::Labels;

/// A label that nothing on this host would look at.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("config.json: {field} = {value:?} is refused: {module} is not enabled on this host")]
pub(crate) struct LabelError {
    field: &'static str,
    value: String,
    module: &'static str,
}

/// Checks that the security modules of the labels are enabled, as runc does.
///
/// # Errors
/// [`LabelError`].
pub(crate) fn check(labels: &Labels) -> Result<(), LabelError> {
    check_on(Path::new("/sys"), labels)
}

fn check_on(sys: &Path, labels: &Labels) -> Result<(), LabelError> {
    let apparmor = || {
        let enabled = std::fs::read_to_string(sys.join("module/apparmor/parameters/enabled"));
        enabled.is_ok_and(|text| text.starts_with('Y'))
    };
    // selinuxfs lies there once the module is initialised.
    let selinux = || sys.join("fs/selinux/enforce").exists();
    let refuse = |field, label: &Option<String>, module| match label {
        Some(value) => Err(LabelError {
            field,
            value: value.clone(),
            module,
        }),
        None => Ok(()),
    };
    if !apparmor() {
        refuse(
            "process.apparmorProfile",
            &labels.apparmor_profile,
            "AppArmor",
        )?;
    }
    if !selinux() {
        refuse("process.selinuxLabel", &labels.selinux_process, "SELinux")?;
        refuse("linux.mountLabel", &labels.selinux_mount, "SELinux")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_label_that_nothing_looks_at_is_refused_by_name() {
        let sys = tempfile::tempdir().unwrap();
        let profile = Labels {
            apparmor_profile: Some("p".to_owned()),
            ..Labels::default()
        };
        let process = Labels {
            selinux_process: Some("u:r:t".to_owned()),
            ..Labels::default()
        };
        let mount = Labels {
            selinux_mount: Some("u:r:t".to_owned()),
            ..Labels::default()
        };
        for (labels, sentence) in [
            (
                &profile,
                "process.apparmorProfile = \"p\" is refused: AppArmor is not enabled",
            ),
            (
                &process,
                "process.selinuxLabel = \"u:r:t\" is refused: SELinux is not enabled",
            ),
            (
                &mount,
                "linux.mountLabel = \"u:r:t\" is refused: SELinux is not enabled",
            ),
        ] {
            let error = check_on(sys.path(), labels).unwrap_err().to_string();
            assert!(error.contains(sentence), "{error}");
        }
        check_on(sys.path(), &Labels::default()).unwrap();
        let parameters = sys.path().join("module/apparmor/parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::create_dir_all(sys.path().join("fs/selinux")).unwrap();
        fs::write(parameters.join("enabled"), "Y\n").unwrap();
        fs::write(sys.path().join("fs/selinux/enforce"), "1").unwrap();
        for labels in [profile, process, mount] {
            check_on(sys.path(), &labels).unwrap();
        }
    }
}
