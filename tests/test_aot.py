"""Ahead-of-time checks: collectives of programs, operation counts, and predicted times."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from evals.aot.__main__ import BEGIN, END, main, merged
from evals.aot.chips import CHIPS, Chip, all_reduce_seconds, scaling, step_seconds
from evals.aot.operations import Operation, Total, operations, total
from evals.aot.program import compile_step, make, reduced, reductions, volumes, with_type
from evals.hlo import Collective, collectives, sizes
from train.engine.optimizer import Optimizer
from train.recipe import Recipe
from train.recipes import RECIPES
from zoo import captioner, convnet, ctc, mlp, rbm, rnn, rnnlm, seq2seq

pytestmark = pytest.mark.slow

HLO = """HloModule jit_steps, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (state: (s32[], f32[4,8])) -> pred[] {
  %state = (s32[], f32[4,8]{1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  %bound = s32[] constant(5)
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}

%open (state.1: (s32[], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %counter.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less.1 = pred[] compare(%counter.1, %counter.1), direction=LT
}

%body (state.2: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state.2 = (s32[], f32[4,8]{1,0}) parameter(0)
  %x = f32[4,8]{1,0:T(8,128)S(1)} get-tuple-element(%state.2), index=1
  %psum.1 = f32[4,8]{1,0:T(8,128)S(1)} all-reduce(%x), replica_groups=[2,4]<=[8], \
metadata={op_name="jit(f)/psum"}
  ROOT %tuple.2 = (s32[], f32[4,8]{1,0}) tuple(%x, %psum.1)
}

%part.1 (p: bf16[6]) -> bf16[6] {
  %p = bf16[6]{0} parameter(0)
  ROOT %begin = bf16[6]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add.1, \
frontend_attributes={chain_id="3"}
}

%part.2 (p.1: bf16[6]) -> bf16[6] {
  %p.1 = bf16[6]{0} parameter(0)
  ROOT %go_on = bf16[6]{0} all-reduce(%p.1), replica_groups={{0,1}}, to_apply=%add.1, \
frontend_attributes={chain_id="3"}
}

ENTRY %main (w: f32[4,8], h: bf16[6]) -> f32[4,8] {
  %w = f32[4,8]{1,0} parameter(0)
  %h = bf16[6]{0} parameter(1)
  %zero = s32[] constant(0)
  %tuple = (s32[], f32[4,8]{1,0}) tuple(%zero, %w)
  %loop = (s32[], f32[4,8]{1,0}) while(%tuple), condition=%condition, body=%body
  %known = (s32[], f32[4,8]{1,0}) while(%tuple), condition=%open, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
  %steps = (s32[], f32[4,8]{1,0}) while(%tuple), condition=%open, body=%body
  %both = (f32[]{:T(128)}, /*index=1*/bf16[2,3]{1,0:T(8,128)(2,1)}) all-reduce(%zero, %h), \
replica_groups={}, to_apply=%add.1
  %gather-start = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%w), \
replica_groups=[1,4]<=[4], dimensions={0}
  %work = f32[4,8]{1,0} fusion(%w), kind=kLoop, calls=%part.1
  %more = f32[4,8]{1,0} fusion(%w), kind=kLoop, calls=%part.2
  %gather-done = f32[16,8]{1,0} all-gather-done(%gather-start)
  %sum-start = f32[4,8]{1,0} all-reduce-start(%w), replica_groups=mesh['a'=3,'b'=4] {'b'}, \
to_apply=%add.1
  %sum-done = f32[4,8]{1,0} all-reduce-done(%sum-start)
  %scattered = f32[1,8]{1,0} reduce-scatter(%sum-done), replica_groups={{0,1,2,3}}, \
dimensions={0}, to_apply=%add.1
  ROOT %result = f32[4,8]{1,0} get-tuple-element(%steps), index=1
}
"""
TINY = Recipe(name="tiny", model=mlp.PRESETS["tiny"], batch_size=16, optimizer=Optimizer())
TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


def counted(function, *arguments, platform="tpu"):
    return total(operations(jax.make_jaxpr(function)(*arguments), platform))


def zeros(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_collectives_of_a_program():
    matrix, both = {"f32": 128.0}, {"f32": 4.0, "bf16": 12.0}
    assert collectives(HLO) == [
        Collective("all-reduce", matrix, 4, 5, False, "jit(f)/psum"),
        Collective("all-reduce", matrix, 4, 7, False, "jit(f)/psum"),
        Collective("all-reduce", matrix, 4, None, False, "jit(f)/psum"),
        Collective("all-reduce", both, None, 1, False, ""),
        # The shape of an asynchronous start includes operands; the gather overlaps with work.
        Collective("all-gather", {"f32": 512.0}, 4, 1, True, ""),
        # One collective split over two fusions.
        Collective("all-reduce", {"bf16": 12.0}, 2, 1, True, ""),
        # Done follows start immediately, so nothing overlaps.
        Collective("all-reduce", matrix, 4, 1, False, ""),
        Collective("reduce-scatter", matrix, 4, 1, False, ""),
    ]
    assert volumes(collectives(HLO)) == {"f32": 128 * (5 + 7 + 1 + 1 + 1) + 4 + 512, "bf16": 24}
    assert reductions(collectives(HLO), asynchronous=True) == {"bf16": 12}
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule empty")


def test_sizes_of_shapes():
    assert sizes(
        "(f32[2,3]{1,0:T(8,128)S(1)}, bf16[], /*index=2*/pred[5], u4[4], f8e4m3fn[3], token[])"
    ) == {
        "f32": 24,
        "bf16": 2,
        "pred": 5,
        "u4": 2,
        "f8e4m3fn": 3,
        "token": 0,
    }


def test_collectives_of_a_compiled_program():
    """A sum in a loop of three, and one after it, on eight devices."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))

    def each(x):
        x = lax.fori_loop(0, 3, lambda _, x: jnp.sin(lax.psum(x, "data")), x)
        return lax.psum(x.astype(jnp.float16).sum(), "data")

    function = jax.jit(
        jax.shard_map(each, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False)
    )
    found = collectives(function.lower(zeros(8, 5)).compile().as_text() or "")
    assert [(each.kind, each.times, each.group) for each in found] == [
        ("all-reduce", 3, 8),
        ("all-reduce", 1, 8),
    ]
    assert found[0].sizes == {"f32": 20}
    assert found[0].source.endswith("psum")


@pytest.mark.parametrize(("compute_dtype", "dispatch"), [(None, 4), ("bfloat16", 1)])
def test_each_gradient_is_reduced_once_on_eight_devices(compute_dtype, dispatch):
    recipe = with_type(dataclasses.replace(TINY, steps_per_dispatch=dispatch), compute_dtype)
    step = make(recipe, 16, jax.devices()[:8], "cpu")
    program = compile_step(step, "cpu")
    assert step.params == 4 * sum(
        int(leaf.size) for leaf in jax.tree.leaves(mlp.init(recipe.model, jax.random.key(0)))
    )
    assert reduced(program.collectives, step.params, step.metrics) == "float32, once"
    assert {each.group for each in program.collectives} == {8}
    assert any(each.times is None for each in program.collectives) == (dispatch > 1)
    assert program.memory > 2 * step.params


def test_matrix_products_are_divided_over_devices():
    shares = [make(TINY, batch, jax.devices()[:count], "tpu") for batch, count in ((16, 8), (2, 1))]
    counts = [total(step.operations).products for step in shares]
    inputs, hidden, classes = TINY.model.sizes[0], TINY.model.sizes[1:-1], TINY.model.sizes[-1]
    weights = sum(a * b for a, b in zip((inputs, *hidden), (*hidden, classes), strict=True))
    # Forward, the kernels' gradients, and the inputs' except in the first layer.
    assert counts == [2 * 2 * (3 * weights - inputs * hidden[0])] * 2
    assert total(shares[0].forward).products == 2 * 2 * weights
    assert shares[0].moved == shares[1].moved


def test_carry_is_sharded_over_devices():
    """An RBM with persistent chains: Gibbs steps, means, a free energy, biases."""
    cfg = rbm.Config(visible=12, hidden=8, persistent=True)
    step = make(Recipe(name="", model=cfg), 16, jax.devices()[:8], "cpu")
    assert total(step.forward).products == (2 + 2 + 2 + 1) * 2 * 2 * 12 * 8 + 2 * 2 * 2 * 12


@pytest.mark.parametrize("module", [rnnlm, rnn, captioner, mlp])
def test_length_option_sets_sequence_length(module):
    recipe = Recipe(name="", model=module.PRESETS["tiny"])
    steps = [make(recipe, 4, jax.devices()[:1], "cpu", length) for length in (10, 20, 30)]
    first, second, third = (total(step.operations).products for step in steps)
    assert second - first == third - second
    assert (first < second) == (module is not mlp)


def test_without_the_option_sequences_keep_their_different_lengths():
    step = make(Recipe(name="", model=seq2seq.PRESETS["tiny"]), 4, jax.devices()[:1], "cpu")
    shapes = [aval.shape for aval in step.traced.jaxpr.in_avals]
    assert seq2seq.EXAMPLE_SOURCE != seq2seq.EXAMPLE_TARGET
    assert shapes.count((1, 4, seq2seq.EXAMPLE_SOURCE)) == 1
    assert shapes.count((1, 4, seq2seq.EXAMPLE_TARGET)) == 3  # as inputs, targets and mask


@pytest.mark.parametrize(
    ("length", "labels", "expected"),
    [(None, None, (14, 3)), (70, None, (70, 15)), (1, None, (1, 1)), (70, 8, (70, 8))],
)
def test_a_labelling_keeps_its_proportion_to_the_sequence(length, labels, expected):
    """The example batch has 14 frames and 3 labels."""
    cfg = ctc.PRESETS["tiny"]
    recipe = Recipe(name="", model=cfg)
    step = make(recipe, 4, jax.devices()[:1], "cpu", length, labels)
    shapes = [aval.shape for aval in step.traced.jaxpr.in_avals]
    frames, places = expected
    assert (1, 4, frames, cfg.features) in shapes
    assert shapes.count((1, 4, places)) == 2  # targets and mask
    assert (1, 4) in shapes  # lengths
    # Only the loss depends on the number of labels.
    more = make(recipe, 4, jax.devices()[:1], "cpu", length, places + 1)
    assert total(more.operations).products > total(step.operations).products


def test_unexpected_reductions_are_described():
    def found(*volumes):
        return [Collective("all-reduce", dict(each), 8, 1, False, "") for each in volumes]

    assert reduced(found({"f32": 1000}, {"f32": 8}), 1000, 12) == "float32, once"
    assert reduced(found({"f32": 1000}, {"f32": 1000}), 1000, 12) == "float32, 2.00 times"
    assert reduced(found({"f32": 500}), 1000, 12) == "float32, 0.50 times"
    assert reduced(found({"f32": 12}, {"bf16": 5e5}), 1e6, 12) == "bf16 0.5 MB"


def test_operation_counts_of_a_dense_network_match_a_hand_count():
    def loss(weights, x):
        hidden = jnp.tanh(x @ weights[0])
        return jnp.sum(hidden @ weights[1])

    weights = [zeros(5, 7), zeros(7, 3)]
    forward = counted(loss, weights, zeros(11, 5))
    products = 2 * 11 * (5 * 7 + 7 * 3)
    moved = 4 * (11 * 5 + 5 * 7 + 11 * 7 + 11 * 7 + 7 * 3 + 11 * 3)
    assert forward == Total(products, 11 * 7 + 11 * 3, moved)
    # Gradients of both kernels and of the hidden layer.
    assert counted(jax.grad(loss), weights, zeros(11, 5)).products == products + 2 * 11 * (
        5 * 7 + 2 * 7 * 3
    )


@pytest.mark.parametrize(
    ("stride", "pad", "spread"), [(1, (1, 1), 1), (2, (2, 1), 1), (1, (0, 0), 2), (3, (1, 0), 1)]
)
def test_convolution_counts_exclude_padding_and_dilation_zeros(stride, pad, spread):
    def conv(x, kernel):
        at = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, (pad,) * 2, (1, 1), (spread,) * 2, dimension_numbers=at
        )

    shapes = [(2, 9, 9, 3), (3, 3, 3, 5)]
    ones = [np.ones((9, 9)), np.ones((3, 3))]
    # On ones, each output is the number of its taps that meet a value.
    met = conv(ones[0][None, :, :, None], ones[1][:, :, None, None]).sum()
    assert counted(conv, *(zeros(*shape) for shape in shapes)).products == 2 * 2 * 3 * 5 * met

    def gradient(x, kernel):
        return jax.grad(lambda x, kernel: conv(x, kernel).sum(), argnums=(0, 1))(x, kernel)

    # Each gradient pairs the same values and taps.
    assert (
        counted(gradient, *(zeros(*shape) for shape in shapes)).products == 3 * 2 * 2 * 3 * 5 * met
    )


def test_grouped_convolution_counts_inputs_of_its_group():
    conv = functools.partial(
        lax.conv_general_dilated, window_strides=(1,), padding="VALID", feature_group_count=2
    )
    assert counted(conv, zeros(3, 4, 10), zeros(6, 2, 3)).products == 2 * 3 * 6 * 8 * 3 * 2


def test_loop_bodies_count_once_per_iteration():
    def step(x, w):
        return jnp.tanh(x @ w), None

    def scanned(x, w):
        return lax.scan(lambda x, _: step(x, w), x, None, length=7)[0]

    def nested(x, w):
        return lax.fori_loop(0, 3, lambda _, x: jax.checkpoint(scanned)(x, w), x)

    def data(x, w, count):
        return lax.fori_loop(0, count, lambda _, x: step(x, w)[0], x)

    one = 2 * 4 * 6 * 6
    assert counted(scanned, zeros(4, 6), zeros(6, 6)).products == 7 * one
    assert counted(nested, zeros(4, 6), zeros(6, 6)).products == 21 * one
    assert counted(data, zeros(4, 6), zeros(6, 6), zeros(dtype=jnp.int32)).products == one
    assert (
        counted(jax.vmap(nested, (0, None)), zeros(5, 4, 6), zeros(6, 6)).products == 5 * 21 * one
    )


def test_platform_branch_counts_otherwise_the_most_expensive():
    def platforms(x):
        return lax.platform_dependent(
            x, cpu=lambda x: jnp.sin(jnp.sin(x)), tpu=lambda x: x, default=jnp.cos
        )

    def choice(index, x):
        return lax.switch(index, [jnp.sin, lambda x: jnp.cos(jnp.sin(x)), lambda x: x], x)

    assert [
        counted(platforms, zeros(9), platform=name).others for name in ("cpu", "tpu", "cuda")
    ] == [18, 0, 9]
    assert counted(choice, zeros(dtype=jnp.int32), zeros(9)).others == 18


def test_counts_of_pooling_and_gather():
    def pooled(x):
        return lax.reduce_window(x, -np.inf, lax.max, (2, 3), (2, 3), "VALID").sum()

    found = {
        each.name: each for each in operations(jax.make_jaxpr(jax.grad(pooled))(zeros(4, 9)), "tpu")
    }
    assert found["select_and_scatter_add"][1:4] == (0, 6 * 6, 4 * (6 + 36 + 36))
    assert counted(pooled, zeros(4, 9)) == Total(0, 36 + 6, 4 * (36 + 6))
    assert (
        counted(lambda x, rows: x[rows], zeros(1000, 3), zeros(5, dtype=jnp.int32)).bytes
        == 2 * 5 * 3 * 4 + 5 * 4
    )


def test_alexnet_has_its_published_number_of_operations():
    """0.71 billion multiply-adds per image (torchvision), which include some padding."""
    cfg = convnet.PRESETS["alexnet"]
    params = jax.eval_shape(lambda: convnet.init(cfg, jax.random.key(0)))
    found = counted(functools.partial(convnet.apply, cfg), params, zeros(2, 224, 224, 3))
    assert 0.92 * 0.714e9 < found.products / 2 / 2 <= 0.715e9


CHIP = Chip(
    kind="",
    peak={"float32": 100.0, "bfloat16": 200.0},
    memory=1,
    bandwidth=10,
    link=5,
    hop=0.5,
    ring=4,
    slices=((2,), (2, 4)),
)


def test_step_time_is_the_roofline_of_each_operation():
    done = [
        Operation("dot_general", 400, 0, 10, "float32", 3),  # 4 s of products, three times
        Operation("dot_general", 400, 0, 50, "bfloat16", 1),  # 5 s of bytes
        Operation("add", 0, 10**6, 0, "float32", 1),  # fused
    ]
    assert step_seconds(done, 20, CHIP) == 3 * 4 + 5 + 2


def test_all_reduce_time_of_rings_lines_and_machines():
    # Two chips: a line, one link.  Four: a ring, both its directions.
    assert all_reduce_seconds(40, (2,), CHIP) == 2 * (40 * 1 / 2 / 5 + 0.5)
    assert all_reduce_seconds(40, (1, 4), CHIP) == 2 * (40 * 3 / 4 / 10 + 2 * 0.5)
    assert all_reduce_seconds(40, (2, 4), CHIP) == pytest.approx(2 * (40 * 7 / 8 / 15 + 3 * 0.5))
    assert all_reduce_seconds(40, (1, 1), CHIP) == 0
    # Machines of two; then each chip sends its half over a slower network.
    machines = dataclasses.replace(CHIP, network=1.0)
    assert all_reduce_seconds(40, (8,), machines) == pytest.approx(
        2 * (20 / 5 + 0.5) + 2 * (20 * 3 / 4 / 1 + 2 * 0.5)
    )


def test_a_pod_reduces_at_its_published_bandwidth():
    """V5e: 51.2 TB/s for a pod of 256 chips."""
    chip = CHIPS["v5e"]
    volume = 1e12
    rate = 2 * volume * 255 / 256 / (all_reduce_seconds(volume, (16, 16), chip) - 2 * 16 * chip.hop)
    assert 256 * rate == pytest.approx(0.9 * 51.2e12)


def test_scaling_efficiency_with_and_without_overlap():
    one, eight = scaling(6.0, 4.0, 40.0, 10.0, CHIP, CHIP.slices)
    assert one.all_reduce == pytest.approx(9)
    # All-reduce 9 s, step 6 s; the backward pass hides 4 s, or 9 / 4 s if that part is
    # asynchronous.
    assert one[2:] == pytest.approx((6 / 15, 6 / 11, 6 / (15 - 9 / 4)))
    assert eight.chips == 8
    assert scaling(6.0, 4.0, 0.0, 0.0, CHIP, ((1,),))[0][2:] == (1, 1, 1)


def test_command_line_with_no_compile(tmp_path, capsys):
    docs = tmp_path / "accelerators.md"
    docs.write_text(
        f"before\n{BEGIN}\n| mlp-digits | 64 | float32 | old |\n| other | 1 | float32 | kept "
        f"|\n{END}\nafter\n"
    )
    assert main(["mlp-digits", "--no-compile", "--docs", str(docs)]) == 0
    shown = capsys.readouterr().out
    (row,) = [line for line in shown.splitlines() if line.startswith("| mlp-digits")]
    cells = row.strip("| ").split(" | ")
    weights = 64 * 512 + 512 * 512 + 512 * 10
    assert float(cells[6]) == pytest.approx(2 * 64 * (3 * weights - 64 * 512) / 1e12, rel=0.01)
    written = docs.read_text().splitlines()
    assert written[:2] + written[4:] == [
        "before",
        BEGIN,
        row,
        "| other | 1 | float32 | kept |",
        END,
        "after",
    ]
    assert written[2].startswith("| recipe | batch a chip | type |")
    assert (
        main(
            [
                "mlp-digits",
                "--no-compile",
                "--global-batch",
                "1024",
                "8192",
                "--compute-dtype",
                "bfloat16",
            ]
        )
        == 0
    )
    rows = [
        line.split(" | ")[1:3]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| mlp-digits")
    ]
    assert rows == [["4", "bfloat16"], ["32", "bfloat16"]]


def test_docs_rows_replace_rows_of_the_same_name_only():
    header = [("recipe", "batch", "type", "x"), ("---",) * 4]
    head = "| recipe | batch | type | x |\n| --- | --- | --- | --- |\n"
    document = merged(f"x{BEGIN}\n{END}y", header, [("a", "1", "f", "old"), ("a", "2", "f", "old")])
    assert document == f"x{BEGIN}\n{head}| a | 1 | f | old |\n| a | 2 | f | old |\n{END}y"
    document = merged(document, header, [("b", "1", "f", "new"), ("a", "1", "f", "new")])
    assert (
        document
        == f"x{BEGIN}\n{head}| a | 1 | f | new |\n| a | 2 | f | old |\n| b | 1 | f | new |\n{END}y"
    )


def test_a_wrong_command_line_is_one_clear_line(capsys, tmp_path, monkeypatch):
    for arguments, said, status in [
        (["convnet-alexnt"], "no recipe 'convnet-alexnt'; did you mean convnet-alexnet?", 2),
        (["--topology", "v9:2x2"], "--topology v9:2x2, allowed: v4, v5e, v5p or v6e", 2),
        (["--per-chip", "0"], "--per-chip", 2),
        (["--length", "0"], "--length", 2),
        (["--labels", "0"], "--labels", 2),
        (
            ["--per-chip", "4", "--global-batch", "8"],
            "--per-chip, allowed without --global-batch",
            2,
        ),
        (["--platform", "cuda"], "--platform cuda needs --target FILE", 2),
        (["--target", "h100.txtpb"], "--target, allowed with --platform cuda only", 2),
        (["--docs", str(tmp_path / "absent.md")], "absent.md", 2),
        (["mlp-digits"], "pip install 'purezoo[tpu]'", 1),
    ]:
        monkeypatch.setattr("evals.aot.program._importable", lambda module: False)
        assert main(arguments) == status
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_recipes_with_a_gate_exist():
    from evals.aot.__main__ import GATES

    assert GATES.keys() <= RECIPES.keys()


@TPU
def test_step_compiles_for_a_tpu(capsys):
    """Checks only that it compiles: large networks take minutes."""
    assert main(["mlp-toolbox", "--topology", "v5e:2x2"]) == 0
    assert "float32, once" in capsys.readouterr().out
    assert main(["mlp-toolbox", "--topology", "v5e:3x5x7"]) == 2
    assert "--topology v5e:3x5x7" in capsys.readouterr().err
