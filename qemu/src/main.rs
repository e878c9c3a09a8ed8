//! Builds images and starts guests, for the Makefile and for whoever works on Orlop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use orlop_qemu::image::{self, Bare, Compression, MachineKind, Options, Project};
use orlop_qemu::{bench, demo, interactive};

#[derive(Debug, Parser)]
#[command(
    name = "orlop-qemu",
    about = "Builds Orlop's images and starts guests."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build dist/vmlinuz, dist/initrd, dist/root.erofs and dist/orlop
    Image(ImageArguments),
    /// Build build/bare.cpio: a root whose PID 1 is `init` at once, without an initramfs stage
    Bare(BinaryArguments),
    /// Boot a guest and restart it; boot three and lose one
    Demo(ImageArguments),
    /// Boot a guest with its console on this terminal
    Run(RunArguments),
    /// Boot three guests that form a cluster, and keep them until the end of the input
    Cluster(ImageArguments),
    /// Measure boots by counted instructions, and sizes
    Bench {
        #[command(flatten)]
        arguments: ImageArguments,
        /// What to measure; all when nothing is named
        #[arg(value_enum)]
        parts: Vec<bench::Part>,
    },
}

#[derive(Debug, Args)]
struct BinaryArguments {
    /// The cargo profile to build the binary with
    #[arg(long, default_value = "release")]
    build: String,
    /// Take this binary instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ImageArguments {
    #[command(flatten)]
    binary: BinaryArguments,
    /// The compression of the initramfs
    #[arg(long, value_enum, default_value = "zstd")]
    compression: CompressionArgument,
    /// The kind of machine that the image is for
    #[arg(long, value_enum, default_value = "virtual")]
    profile: MachineArgument,
    /// Carry busybox in the initramfs, for `orlop.rescue` on the kernel command line
    #[arg(long)]
    rescue: bool,
    /// Leave the root out of the initramfs: it is on a disk, found by its label
    #[arg(long)]
    root_on_disk: bool,
    /// Where the products go
    #[arg(long, default_value = "dist")]
    output: PathBuf,
}

impl ImageArguments {
    fn options(self, project: &Project) -> Options {
        Options {
            build: self.binary.build,
            binary: self.binary.binary,
            compression: match self.compression {
                CompressionArgument::Zstd => Compression::Zstd,
                CompressionArgument::Lz4 => Compression::Lz4,
            },
            rescue: self.rescue,
            machine: match self.profile {
                MachineArgument::Virtual => MachineKind::Virtual,
                MachineArgument::Metal => MachineKind::Metal,
            },
            carry_root: !self.root_on_disk,
            output: project.root.join(self.output),
        }
    }
}

#[derive(Debug, Args)]
struct RunArguments {
    #[command(flatten)]
    image: ImageArguments,
    /// The cloud-config
    config: PathBuf,
    /// A port of the guest to forward, beside 22 and 80
    #[arg(long)]
    port: Vec<u16>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MachineArgument {
    Virtual,
    Metal,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressionArgument {
    Zstd,
    Lz4,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop-qemu: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let project = Project::here();
    match arguments.command {
        Command::Image(arguments) => {
            let options = arguments.options(&project);
            image::image(&project, &options)?;
        }
        Command::Demo(arguments) => demo::run(&project, &arguments.options(&project))?,
        Command::Run(arguments) => {
            let options = arguments.image.options(&project);
            interactive::run(&project, &options, &arguments.config, &arguments.port)?;
        }
        Command::Cluster(arguments) => {
            let options = arguments.options(&project);
            demo::three::keep(&project, &options)?;
        }
        Command::Bench { arguments, parts } => {
            bench::run(&project, &arguments.options(&project), &parts)?;
        }
        Command::Bare(arguments) => {
            let binary = match arguments.binary {
                Some(binary) => binary,
                None => image::build_binary(&project, &arguments.build)?,
            };
            image::bare(
                &project,
                &binary,
                &Bare::default(),
                &project.path("build/bare.cpio"),
            )?;
        }
    }
    Ok(())
}
