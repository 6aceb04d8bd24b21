//! The pods' network: a bridge whose MTU fits the container's own interface.

use std::path::Path;

use serde_json::json;

use crate::config::CNI_CONF_DIR;
use crate::error::Result;
use crate::files;

/// The pods' bridge.
pub const BRIDGE: &str = "cni0";

/// Where the host-local plugin keeps allocations unless its configuration says otherwise, and where containerd's client
/// of the plugins keeps results.
const ALLOCATIONS: [&str; 2] = ["/var/lib/cni/networks", "/var/lib/cni/results"];

/// Removes the allocations of pods that are gone, of another network than ours: at a start there are no pods.
pub fn forget_addresses() -> Result<()> {
    ALLOCATIONS.iter().try_for_each(files::remove_tree)
}

/// Whether there are any.
pub fn has_foreign_allocations() -> bool {
    files::list(ALLOCATIONS[0]).is_ok_and(|networks| !networks.is_empty())
}

/// Writes the plugin list. Address allocations are in /run, which is cleared at a restart, as are the pods.
pub fn write(mtu: u32, subnet: &str) -> Result<()> {
    files::make_dir(CNI_CONF_DIR)?;
    let path = Path::new(CNI_CONF_DIR).join("10-kind.conflist");
    let ipam = json!({
        "type": "host-local",
        "dataDir": "/run/cni/networks",
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let plugins = json!([
        {"type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true, "mtu": mtu, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]);
    let list = json!({"cniVersion": "0.4.0", "name": "kind", "plugins": plugins});
    files::write(path, list.to_string())
}
