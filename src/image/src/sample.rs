//! The sample image: a web server that remembers, on its volume, how often it was started and visited.

use oci_spec::image::{Config, ConfigBuilder};

use crate::build::{Error, Layer, Recipe};
use crate::decompress::Compression;

/// The programs that the scripts below call; each is a link to busybox.
const APPLETS: &[&str] = &[
    "cat", "date", "echo", "hostname", "httpd", "ls", "mkdir", "mv", "ps", "sh", "sleep", "wget",
];

/// Counts the start, writes the page, and runs the web server until it is told to end. Written so that a crash leaves the old count or the new
/// one, never half a file.
const START: &str = r#"#!/bin/sh
set -e
mkdir -p /data/www/cgi-bin
starts=$(cat /data/starts 2>/dev/null || echo 0)
starts=$((starts + 1))
echo "$starts" >/data/starts.new
mv /data/starts.new /data/starts
cat >/data/www/index.html <<EOF
<!doctype html>
<title>Orlop</title>
<h1>Hello from a container</h1>
<p>host: $(hostname)
<p>starts: $starts
<p><a href="/cgi-bin/visit">count a visit</a>
EOF
cat >/data/www/cgi-bin/visit <<'EOF'
#!/bin/sh
visits=$(($(cat /data/visits 2>/dev/null || echo 0) + 1))
echo "$visits" >/data/visits.new && mv /data/visits.new /data/visits
printf 'Content-Type: text/plain\r\n\r\nvisits: %s\n' "$visits"
EOF
busybox chmod 755 /data/www/cgi-bin/visit
echo "start $starts, serving on port ${PORT:-80}"
# The first process of a container gets no signal that it does not catch (pid_namespaces(7)).
trap 'kill $!; wait $! || exit 0' TERM INT
httpd -f -p "${PORT:-80}" -h /data/www &
wait $!
"#;

/// The web server's image, named `orlop-web:latest`, from the bytes of a static busybox that has `httpd` and `sh`.
///
/// The page is `/`, with a line `<p>starts: N`; `/cgi-bin/visit` answers `visits: N`. Both numbers live in `/data`, which is
/// meant to be a volume. The port is 80, or `$PORT`.
///
/// # Errors
/// When the configuration cannot be made.
pub fn web_server(busybox: Vec<u8>) -> Result<Recipe, Error> {
    let mut base = Layer::new()
        .directory("bin", 0o755)
        .directory("data", 0o755)
        .directory("dev", 0o755)
        .directory("etc", 0o755)
        .directory("proc", 0o755)
        .directory("sys", 0o755)
        .directory("tmp", 0o1777)
        .file("bin/busybox", 0o755, busybox)
        .file("etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n")
        .file("etc/group", 0o644, "root:x:0:\n");
    for applet in APPLETS {
        base = base.symlink(&format!("bin/{applet}"), "busybox");
    }
    let program = Layer::new().file("bin/start", 0o755, START);
    let config: Config = ConfigBuilder::default()
        .entrypoint(vec!["/bin/start".to_owned()])
        .env(vec!["PATH=/bin".to_owned()])
        .working_dir("/")
        .exposed_ports(vec!["80/tcp".to_owned()])
        .volumes(vec!["/data".to_owned()])
        .build()
        .map_err(Error::Configuration)?;
    Ok(Recipe {
        name: "orlop-web:latest".to_owned(),
        config,
        layers: vec![base, program],
        compression: Compression::Gzip,
    })
}
