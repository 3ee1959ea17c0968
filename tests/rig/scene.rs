//! What most tests begin with: a tenant with a note, and the agent that is to serve it.

use super::World;
use super::agent::{End, Setup};
use super::config;
use super::server::{CALM, Scene, Tenant, Which};
use serde_json::json;

impl Scene {
    /// FUSE, where the server does not matter.
    pub(crate) const FUSE: Self = Self::of(World::Fuse);

    /// This world, where the server does not matter.
    pub(crate) const fn of(world: World) -> Self {
        Self {
            world,
            which: Which::Standin,
        }
    }

    /// This world with the real server.
    pub(crate) const fn real(world: World) -> Self {
        Self {
            world,
            which: Which::Real,
        }
    }

    /// A tenant whose note is `old`, and an agent with this configuration.
    pub(crate) fn setup(self, name: &str, text: impl FnOnce(&Tenant) -> String) -> (Tenant, Setup) {
        let tenant = self.tenant(name, CALM);
        tenant.put("note", json!({ "text": "old" }));
        let setup = Setup::new(self.world, &tenant, &text(&tenant));
        (tenant, setup)
    }

    /// The same with the usual configuration.
    pub(crate) fn usual(self, name: &str) -> (Tenant, Setup) {
        self.setup(name, config::usual)
    }
}

/// Asserts that an agent under a shell left no mount, file or process, and no token or lease.
pub(crate) fn assert_left_nothing(tenant: &Tenant, end: &End) {
    assert!(
        !end.stdout.contains("left "),
        "{}\n{}",
        end.stdout,
        end.stderr
    );
    tenant.assert_nothing_lives();
}
