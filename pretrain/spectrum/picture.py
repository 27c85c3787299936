"""The picture of spectra: a panel for each kind of projection, a line for each layer, and the effective ranks."""

from pathlib import Path

from pretrain.spectrum.measure import Spectra


def draw(found: Spectra, path: Path) -> None:
    """Write a PNG of the singular values of W over the largest, and its effective ranks by layer.

    What is below a ten-thousandth of the largest is left out. Equal spectra give equal bytes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    kinds = list(dict.fromkeys(name.split(".", 2)[2] for name in found.values))
    effective = {row["matrix"]: row["W"]["effective_rank"] for row in found.rows}
    layers = 1 + max(int(name.split(".")[1]) for name in found.values)
    color = ScalarMappable(Normalize(0, max(1, layers - 1)), "viridis")
    colors = color.to_rgba(range(layers))  # type: ignore[arg-type]
    figure, axes = pyplot.subplots(2, 4, figsize=(17, 8), layout="constrained")
    last = axes[1, 3]
    for panel, kind in zip(axes.flat, kinds, strict=False):
        ranks = []
        for layer in range(layers):
            name = f"layers.{layer}.{kind}"
            values = found.values[name]["W"].double()
            ranks.append(effective[name] / len(values))
            places = [(place + 1) / len(values) for place in range(len(values))]
            panel.plot(places, values / values[0].clamp(min=1e-30), color=colors[layer], linewidth=1.1)
        panel.set(yscale="log", ylim=(1e-4, 1.3), xlim=(0, 1), title=kind)
        last.plot(range(layers), ranks, "o-", markersize=4, linewidth=1.2, label=kind.partition(".")[2])
    for panel in axes[:, 0]:
        panel.set_ylabel("singular value of W / largest")
    for panel in axes.flat[:7]:
        panel.set_xlabel("place / smaller side")
        panel.minorticks_off()  # most of the time that drawing takes
    last.set(xlabel="layer", ylim=(0, 1), title="effective rank of W / smaller side")
    last.xaxis.set_major_locator(MaxNLocator(integer=True))
    last.legend(fontsize=8, ncols=2)
    for panel in axes.flat:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    if layers > 1:
        figure.colorbar(color, ax=axes, label="layer", shrink=0.6, pad=0.01, ticks=MaxNLocator(integer=True))
    figure.suptitle(f"step {found.step}", fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
