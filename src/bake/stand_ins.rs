//! Makes the control plane's containers run `kind stand-in`, which stands for the program or becomes it.

use std::fs;
use std::path::Path;

use crate::config::{RESTORED_DIR, STAND_IN, STATIC_POD_DIR};
use crate::error::{Error, Result};
use crate::restore::PROGRAMS;

/// Where the containers have this program.
const PROGRAM: &str = "/usr/local/bin/kind";

pub fn put() -> Result<()> {
    for name in PROGRAMS {
        let path = Path::new(STATIC_POD_DIR).join(format!("{name}.yaml"));
        let text = fs::read_to_string(&path).map_err(|cause| Error::io("read", &path, cause))?;
        let text = text
            .replacen(&format!("- command:\n    - {name}\n"), &format!("- command:\n    - {PROGRAM}\n    - {STAND_IN}\n    - {name}\n    - {name}\n"), 1)
            .replacen("    volumeMounts:\n", &format!("    volumeMounts:\n    - mountPath: {PROGRAM}\n      name: kind\n      readOnly: true\n    - mountPath: {RESTORED_DIR}\n      name: restored\n"), 1)
            .replacen("  volumes:\n", &format!("  volumes:\n  - hostPath:\n      path: {PROGRAM}\n      type: File\n    name: kind\n  - hostPath:\n      path: {RESTORED_DIR}\n      type: DirectoryOrCreate\n    name: restored\n"), 1);
        fs::write(&path, text).map_err(|cause| Error::io("write", &path, cause))?;
    }
    Ok(())
}
