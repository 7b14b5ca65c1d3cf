//! Every way to say who we are, and TLS.

use std::path::{Path, PathBuf};
use std::process::Command;

use relay_bus::connection::ConnectionSettings;
use relay_bus::seam::{Store, What};
use relay_testkit::nats::{NatsServer, Options};

use crate::core::Core;
use crate::support::{connection, outgoing};

/// Made for this test.
const NKEY_SEED: &str = "SUAKOIETKDYRBT7IKNMO7LL3DHSXSY4NHNJO4UUZYWGBYUFWKV6MHTFZDU";
const NKEY_PUBLIC: &str = "UDJRRBJUJKUIEACODBHPD7CBZYDTZGCQKYTL63GP4PMKRV2IXG6KPR46";

/// With these settings publishing works; with `wrong` ones it is told why not.
async fn check(
    config: &str,
    right: impl Fn(&mut ConnectionSettings),
    wrong: impl Fn(&mut ConnectionSettings),
) {
    let server = NatsServer::start(Options::core().config(config))
        .await
        .unwrap();
    let with = |change: &dyn Fn(&mut ConnectionSettings)| {
        let mut settings = connection(&server.url());
        change(&mut settings);
        Core::start(&settings)
    };
    let refused = with(&wrong);
    let core = with(&right);
    core.heard.live(1).await;
    core.store
        .publish(outgoing("u", "j", What::State, "{}"))
        .await
        .unwrap();
    refused
        .heard
        .lost_with("check the user, password, token, nkey or credentials")
        .await;
    assert!(refused.heard.lives().is_empty());
}

#[tokio::test]
async fn with_user_and_password() {
    check(
        "authorization { user: relay, password: secret }",
        |settings| {
            settings.user = Some("relay".into());
            settings.password = Some("secret".into());
        },
        |settings| {
            settings.user = Some("relay".into());
            settings.password = Some("wrong".into());
        },
    )
    .await;
}

#[tokio::test]
async fn with_user_and_password_in_the_url() {
    check(
        "authorization { user: relay, password: \"p@ss\" }",
        |settings| settings.urls = vec![settings.urls[0].replace("//", "//relay:p%40ss@")],
        |_| {},
    )
    .await;
}

#[tokio::test]
async fn with_a_token() {
    check(
        "authorization { token: \"s3cr3t\" }",
        |settings| settings.token = Some("s3cr3t\n".into()),
        |settings| settings.token = Some("wrong".into()),
    )
    .await;
}

#[tokio::test]
async fn with_an_nkey() {
    check(
        &format!("authorization {{ users: [ {{ nkey: {NKEY_PUBLIC} }} ] }}"),
        |settings| settings.nkey_seed = Some(format!("{NKEY_SEED}\n")),
        |settings| settings.nkey_seed = Some("not a seed".into()),
    )
    .await;
}

#[tokio::test]
async fn with_a_credentials_file() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nats/fixtures");
    let operator = std::fs::read_to_string(fixtures.join("operator.conf")).unwrap();
    check(
        &operator,
        |settings| settings.creds_file = Some(fixtures.join("user.creds")),
        |_| {},
    )
    .await;
}

/// An authority, a server's certificate and a client's, made by openssl.
struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let openssl = |arguments: &str| {
            let done = Command::new("openssl")
                .args(arguments.split_whitespace())
                .current_dir(directory.path())
                .output()
                .unwrap();
            assert!(
                done.status.success(),
                "{}",
                String::from_utf8_lossy(&done.stderr)
            );
        };
        std::fs::write(
            directory.path().join("san"),
            "subjectAltName=IP:127.0.0.1,DNS:localhost\n",
        )
        .unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!(
            "req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-authority"
        ));
        for who in ["server", "client"] {
            openssl(&format!(
                "req {key} -keyout {who}.key -out {who}.csr -subj /CN={who}"
            ));
            openssl(&format!(
                "x509 -req -in {who}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {who}.pem -days 2 -extfile san"
            ));
        }
        Self { directory }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// TLS in which both sides show a certificate.
    fn config(&self) -> String {
        format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
            self.path("server.pem"),
            self.path("server.key"),
            self.path("ca.pem")
        )
    }
}

#[tokio::test]
async fn with_tls_on_both_sides() {
    let certificates = Certificates::make();
    let server = NatsServer::start(Options::core().config(&certificates.config()))
        .await
        .unwrap();
    let unknown = Core::start(&ConnectionSettings {
        tls_required: true,
        ..connection(&server.url())
    });
    let core = Core::start(&ConnectionSettings {
        urls: vec![server.url().replace("nats://", "tls://")],
        tls_required: true,
        tls_ca_file: Some(certificates.path("ca.pem")),
        tls_cert_file: Some(certificates.path("client.pem")),
        tls_key_file: Some(certificates.path("client.key")),
        ..ConnectionSettings::default()
    });
    core.heard.live(1).await;
    core.store
        .publish(outgoing("u", "j", What::State, "{}"))
        .await
        .unwrap();
    // An authority the system does not know is not believed.
    unknown.heard.lost_with("cannot be reached").await;
    assert!(unknown.heard.lives().is_empty());
}

#[tokio::test]
async fn tls_that_is_required_is_not_done_without() {
    let server = NatsServer::start(Options::core()).await.unwrap();
    let core = Core::start(&ConnectionSettings {
        tls_required: true,
        ..connection(&server.url())
    });
    core.heard.lost_with("cannot be reached").await;
    assert!(core.heard.lives().is_empty());
}
