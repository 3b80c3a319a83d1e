//! `info` and the build cache in `system df`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::support::env::{TestEnv, run};
use super::support::oci::Image;
use super::support::registry::command;
use super::support::small::for_user;
use super::support::tar::Tar;

fn with_image() -> TestEnv {
    let env = TestEnv::new();
    Image::new().layer(Tar::new().file("a", "b").finish()).tag("1").write_layout(&env.path("app"));
    env.ok(["pull", "-q", &format!("oci:{}:1", env.path("app").display())]);
    env
}

#[test]
fn info_shows_the_store_and_the_host_in_dockers_shape() {
    let env = with_image();
    let out = run(&mut env.command(["info"]));
    assert_eq!(out.code, 0, "{out:?}");
    let lines: Vec<&str> = out.stdout.lines().collect();
    let head = ["Containers: 0", " Running: 0", " Paused: 0", " Stopped: 0", "Images: 1", " Layers: 1", "Mounts: 0"];
    assert_eq!(lines[..7], head);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for line in [
        "Storage Driver: fuse",
        " FUSE: usable (/dev/fuse)",
        "Registry: https://index.docker.io/v1/",
        "OSType: linux",
        &format!("Kernel Version: {}", kernel.trim()),
        &format!("Docker Root Dir: {}", env.root().display()),
        &format!("Server Version: {}", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(lines.contains(&line), "{line}: {out:#?}");
    }
    for begin in [" Kernel Overlayfs: ", " EROFS: ", "User Namespaces: ", " Subordinate IDs: ", "Cgroup Version: "] {
        assert!(lines.iter().any(|line| line.starts_with(begin)), "{begin}: {out:#?}");
    }
    assert!(out.stderr.lines().all(|line| line.starts_with("WARNING: ")), "{out:?}");
    // The probes leave nothing.
    assert_eq!(fs::read_dir(env.root().join("tmp")).unwrap().count(), 0);
    assert_eq!(env.ok(["system", "fsck"]), "");
    assert_eq!(run(&mut env.command(["system", "info"])).stdout.lines().next(), lines.first().copied());
    let mount = env.mount("app:1", &[]);
    let counts = env.ok(["info", "-f", "{{.Mounts}} {{.Images}} {{.Containers}} {{.ContainersRunning}}"]);
    assert_eq!(counts, "1 1 0 0\n");
    mount.unmount();
}

#[test]
fn info_fills_templates_with_dockers_fields() {
    let env = with_image();
    let all: Value = serde_json::from_str(&env.ok(["info", "-f", "{{json .}}"])).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&env.ok(["info", "--format", "json"])).unwrap()["Images"], all["Images"]);
    assert_eq!((&all["ServerVersion"], &all["OSType"]), (&json!(env!("CARGO_PKG_VERSION")), &json!("linux")));
    assert_eq!(all["RegistryConfig"]["IndexConfigs"]["docker.io"]["Official"], true);
    assert_eq!(all["IndexServerAddress"], "https://index.docker.io/v1/");
    let cpus = std::thread::available_parallelism().unwrap().to_string();
    assert_eq!(env.ok(["info", "-f", "{{.NCPU}} {{.Driver}}"]), format!("{cpus} fuse\n"));
    assert!(all["MemTotal"].as_u64().unwrap() > 1 << 20 && all["StoreSize"].as_u64().unwrap() > 0, "{all:#}");
    let fields = ["KernelVersion", "OperatingSystem", "Architecture", "DockerRootDir", "Name", "CgroupVersion"];
    assert!(fields.iter().all(|name| all[name].as_str().is_some_and(|text| !text.is_empty())), "{all:#}");
    let engine = run(env.command(["info", "-f", "{{.Driver}}"]).env("PLYFS_ENGINE", "auto"));
    assert_eq!(engine.stdout, "auto\n");
    let none = run(env.command(["info", "-f", "{{.DefaultRuntime}}|{{json .Warnings}}"]).env("PATH", "/nowhere"));
    assert!(none.stdout.starts_with('|') && none.stdout.contains("install runc, crun or youki"), "{none:?}");
    let wrong = run(&mut env.command(["info", "-f", "{{.Nope}}"]));
    assert!(wrong.code == 1 && wrong.stderr.contains("can't evaluate field Nope"), "{wrong:?}");
    assert_eq!(run(&mut env.command(["info", "-f", "{{.ID"])).code, 64);
    assert_eq!(
        run(&mut env.command(["info", "x"])).stderr,
        "\"plyfs info\" accepts no arguments.\nSee 'plyfs info --help'.\n"
    );
}

#[test]
fn info_names_registries_and_credential_files_but_no_secrets() {
    let env = with_image();
    let (conf, auth) = (env.path("registries.conf"), env.path("auth.json"));
    let text = "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \
                \"mirror.example\"\n[[registry]]\nlocation = \"plain.example\"\ninsecure = true\n";
    fs::write(&conf, text).unwrap();
    fs::write(&auth, r#"{"auths":{"r.example":{"auth":"dXNlcjpzZWNyZXQ="}},"credHelpers":{"h.example":"x"}}"#).unwrap();
    let info = |args: &[&str]| {
        let mut command = command(&env, args);
        run(command.env("CONTAINERS_REGISTRIES_CONF", &conf).env("REGISTRY_AUTH_FILE", &auth))
    };
    let shown = info(&["info"]).stdout;
    for part in [
        "Registry Mirrors:\n docker.io: mirror.example\n",
        "Insecure Registries:\n plain.example\n",
        &format!("Credential Files:\n {}: h.example (docker-credential-x), r.example\n", auth.display()),
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json = info(&["info", "-f", "{{json .}}"]).stdout;
    assert!([&shown, &json].iter().all(|text| !text.contains("dXNl") && !text.contains("secret")), "{shown}{json}");
    let config: Value = serde_json::from_str(&info(&["info", "-f", "{{json .RegistryConfig}}"]).stdout).unwrap();
    assert_eq!(config["Mirrors"], json!(["mirror.example"]));
    assert_eq!(config["IndexConfigs"]["plain.example"]["Secure"], false);
    fs::write(&conf, "[[registry]]\nlocation = 1").unwrap();
    fs::write(&auth, "{").unwrap();
    let broken = info(&["info"]);
    assert!(broken.code == 0 && broken.stderr.contains("line 2") && broken.stderr.contains("auth.json"), "{broken:?}");
}

#[test]
fn info_works_without_root() {
    let (env, _) = for_user(65_534);
    let out = run(&mut env.as_user(65_534, &["info"]));
    assert_eq!(out.code, 0, "{out:?}");
    assert!(out.stdout.contains("\n EROFS: not usable: "), "{}", out.stdout);
    assert_eq!(fs::read_dir(env.root().join("tmp")).unwrap().count(), 0, "{out:?}");
}

#[test]
fn system_df_shows_the_build_cache_last() {
    let env = TestEnv::new();
    let cache = |env: &TestEnv| {
        let table =
            env.ok(["system", "df", "--format", "{{.Type}}|{{.TotalCount}}|{{.Active}}|{{.Size}}|{{.Reclaimable}}"]);
        table.lines().last().unwrap().to_owned()
    };
    assert_eq!(cache(&env), "Build Cache|0|0|0B|0B");
    let context = env.path("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("file"), vec![7; 100_000]).unwrap();
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY file /\n").unwrap();
    let built = env.ok(["build", "-q", "-t", "app", Path::to_str(&context).unwrap()]);
    // An image needs the layer.
    assert_eq!(cache(&env), "Build Cache|1|0|0B|0B");
    env.ok(["rmi", built.trim()]);
    let left = cache(&env);
    assert!(left.starts_with("Build Cache|1|0|10") && left.ends_with("kB"), "{left}");
    env.ok(["builder", "prune", "-f"]);
    assert_eq!(cache(&env), "Build Cache|0|0|0B|0B");
}
