//! Who may call what: every method, every kind of token, every built-in role.

use prost::Message as _;

use crate::methods::methods;
use crate::world::{Inhabited, outcome};

#[tokio::test]
async fn every_example_does_what_it_says() {
    let world = Inhabited::create().await;

    for method in methods() {
        let request = world.example(&method).encode_to_vec();
        let answer = method.call(world.right_caller(&method), request.into()).await;

        // What the examples find: nothing is suspended, deleted or failed.
        let expected = match method.short_name().as_str() {
            "ClusterService.CreateCluster" => "CLUSTER_NOT_READY",
            "MigrationService.RetryTenantMigration" => "MIGRATION_NOT_FAILED",
            "TenantService.ResumeTenant" => "TENANT_NOT_SUSPENDED",
            "TenantService.UndeleteTenant" => "RESOURCE_NOT_DELETED",
            _ => "OK",
        };
        assert_eq!(outcome(&answer), expected, "{}", method.short_name());
    }
}
