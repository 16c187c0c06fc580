"""Programs over adamas.torch: gradient scalers, accelerate, Hugging Face's Trainer, Lightning.

Each trains a tiny model with our optimizer and with torch's, and has the same losses; nothing is
downloaded. A library that is not installed is a skip.
"""

import copy
import logging

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch_tested import (  # noqa: E402
    IS_STAND_IN,
    Problem,
    assert_close,
    every_dense_class,
    kept,
    ours,
    tested,
    theirs,
)

OPTIONS = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1}
STEPS = 12
PLAIN = {"foreach": False, "fused": False}
# The class and its options, by whose it is.
SIDES = {"ours": (tested.AdamW, OPTIONS), "theirs": (torch.optim.AdamW, {**OPTIONS, **PLAIN})}


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)]
    return torch.nn.Sequential(*layers)


def batches(count=STEPS, size=8):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        inputs = torch.randn(size, 5, generator=generator)
        yield inputs, inputs[:, :3].sin()


def loss_of(model, batch):
    inputs, targets = batch
    return (model(inputs) - targets).square().mean()


def assert_learned_alike(losses, tolerance=1e-5):
    """Compare the losses of both sides, which have fallen."""
    assert len(losses["ours"]) == len(losses["theirs"]) > 1
    torch.testing.assert_close(losses["ours"], losses["theirs"], rtol=tolerance, atol=tolerance)
    assert losses["ours"][-1] < losses["ours"][0]


# ------------------------------------------------------------------------------- gradient scalers


def scaled_steps(make, name, *, with_unscale, overflows, **options):
    """Train under a scaler; return losses, scales and what is kept at the end."""
    problem = Problem(name)
    optimizer = make(name, problem.params, **{**OPTIONS, **options})
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = (problem.weight.mv(problem.input) + problem.bias).pow(2).sum()
        scaler.scale(loss).backward()
        if step in overflows:
            problem.bias.grad[3] = float("inf")
        if with_unscale:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(problem.params, 0.5)
        scaler.step(optimizer)
        scaler.update()
        found.append((float(loss.detach()), scaler.get_scale()))
    assert not hasattr(optimizer, "grad_scale")
    assert not hasattr(optimizer, "found_inf")
    return torch.tensor(found), kept(optimizer, problem.params)


@pytest.mark.parametrize("with_unscale", [False, True], ids=["", "unscaled and clipped"])
@pytest.mark.parametrize("overflows", [(), (0, 5, 6)], ids=["finite", "with infinities"])
@pytest.mark.parametrize("fused", [None, True], ids=["", "fused"])
@every_dense_class
def test_gradient_scaler(name, fused, overflows, with_unscale):
    """With fused=True the step itself unscales, and skips where the scaler says so."""
    options = {"with_unscale": with_unscale, "overflows": overflows}
    got = scaled_steps(ours, name, fused=fused, **options)
    wanted = scaled_steps(theirs, name, **options)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert_close(got[1], wanted[1], 1e-5)
    assert int(got[1]["step 0"]) == STEPS - len(overflows)


@pytest.mark.parametrize("dims", [0, 1])
@every_dense_class
def test_scale_and_finding_by_attributes(name, dims):
    """What a scaler sets on fused optimizers: gradients are divided, or the step is left out."""
    if IS_STAND_IN and dims:
        pytest.skip("torch's own fused form takes scalars only, as scalers set them")
    problems = [Problem(name) for _ in range(2)]
    fused = (True, None)
    optimizers = [
        ours(name, p.params, fused=is_fused, **OPTIONS)
        for p, is_fused in zip(problems, fused, strict=True)
    ]
    scaled, plain = optimizers
    for step in range(6):
        for problem, optimizer in zip(problems, optimizers, strict=True):
            problem.closure(optimizer)()
        for param in problems[0].params:
            param.grad.mul_(256.0)
        scaled.grad_scale = torch.full((1,) * dims, 256.0)
        scaled.found_inf = torch.full((1,) * dims, float(step == 3))
        before = kept(scaled, problems[0].params)
        grads = [param.grad.clone() for param in problems[0].params]
        scaled.step()
        if step == 3:
            assert_close(kept(scaled, problems[0].params), before, 0)
            continue
        plain.step()
        if not IS_STAND_IN:  # torch's own fused form divides the gradients themselves
            for param, grad in zip(problems[0].params, grads, strict=True):
                assert torch.equal(param.grad, grad)
        assert_close(
            kept(scaled, problems[0].params),
            kept(plain, problems[1].params),
            1e-6 if IS_STAND_IN else 0,
        )
    assert int(scaled.state[problems[0].weight]["step"]) == 5


# -------------------------------------------------------------------------- torch's own machinery


def trained(side, **changes):
    of, options = SIDES[side]
    model = network()
    return model, of(model.parameters(), **{**options, **changes})


def test_clipping_and_accumulation():
    losses = {}
    for side in SIDES:
        model, optimizer = trained(side)
        losses[side] = []
        for step, batch in enumerate(batches(24)):
            loss = loss_of(model, batch) / 2
            loss.backward()
            losses[side].append(float(loss.detach()))
            if step % 2:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad(set_to_none=step % 3 == 0)
    assert_learned_alike(losses)


def test_an_optimizer_for_each_parameter_in_the_backward_pass():
    """Torch's recipe to free gradients early: steps are made in hooks of the backward pass."""
    losses = {}
    for side, (of, options) in SIDES.items():
        model = network()
        optimizers = {param: of([param], **options) for param in model.parameters()}

        def step(param, optimizers=optimizers):
            optimizers[param].step()
            optimizers[param].zero_grad()

        for param in model.parameters():
            param.register_post_accumulate_grad_hook(step)
        losses[side] = []
        for batch in batches():
            loss = loss_of(model, batch)
            loss.backward()
            losses[side].append(float(loss.detach()))
        assert all(param.grad is None for param in model.parameters())
    assert_learned_alike(losses)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    losses = {}
    for side in SIDES:
        model, optimizer = trained(side)
        losses[side] = []
        for inputs, targets in batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                outputs = model(inputs)
            loss = (outputs.float() - targets).square().mean()
            loss.backward()
            optimizer.step()
            losses[side].append(float(loss.detach()))
    assert_learned_alike(losses, 2e-3)


def test_parametrized_and_tied_weights():
    """torch.nn.utils.parametrizations; and a weight that is in two layers, once in the list."""
    losses = {}
    for side, (of, options) in SIDES.items():
        model = network()
        torch.nn.utils.parametrizations.weight_norm(model[0])
        decoder = torch.nn.Linear(3, 7, bias=False)
        decoder.weight = torch.nn.Parameter(model[2].weight.detach().T.contiguous())
        model[2].weight = None

        def forward(inputs, model=model, decoder=decoder):
            hidden = model[1](model[0](inputs))
            outputs = torch.nn.functional.linear(hidden, decoder.weight.T, model[2].bias)
            return outputs + 0.1 * decoder(outputs)[:, :3]

        params = [*model.parameters(), *decoder.parameters()]
        optimizer = of(params, **options)
        losses[side] = []
        for batch in batches():
            optimizer.zero_grad()
            loss = loss_of(forward, batch)
            loss.backward()
            optimizer.step()
            losses[side].append(float(loss.detach()))
    assert_learned_alike(losses)


def compiled(backend):
    losses = {}
    for side in SIDES:
        model, optimizer = trained(side)
        torch.compiler.reset()
        fast = torch.compile(model, backend=backend)
        losses[side] = []
        for batch in batches():
            optimizer.zero_grad()
            loss = loss_of(fast, batch)
            loss.backward()
            optimizer.step()
            losses[side].append(float(loss.detach()))
    torch.compiler.reset()
    assert_learned_alike(losses)


ignore_compilers = pytest.mark.filterwarnings("ignore:::torch", "ignore::DeprecationWarning")


@ignore_compilers
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models(backend):
    compiled(backend)


@ignore_compilers
@pytest.mark.long
def test_models_compiled_to_machine_code():
    """By inductor, which needs a C++ compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1, backend="inductor")(torch.ones(3))
    except Exception as error:
        torch.compiler.reset()
        pytest.skip(f"inductor does not work here: {type(error).__name__}")
    compiled("inductor")


@ignore_compilers
def test_step_inside_of_a_compiled_function():
    """The step is not traced: it is called from between two graphs, and does the same."""
    losses = {}
    for side in SIDES:
        model, optimizer = trained(side)
        torch.compiler.reset()

        @torch.compile(backend="eager")
        def train(batch, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            return loss.detach()

        losses[side] = [float(train(batch)) for batch in batches()]
    torch.compiler.reset()
    assert_learned_alike(losses)


@every_dense_class
def test_state_dicts_of_distributed_checkpoint(name):
    """torch.distributed.checkpoint steps with rate 0 and dense zeros, to see the state's keys."""
    from torch.distributed.checkpoint import state_dict as dcp

    losses = []
    model = network()
    optimizer = ours(name, model.parameters(), **OPTIONS)
    for batch in batches(4):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    saved = dcp.get_state_dict(model, optimizer)
    assert set(saved[1]["state"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    other = network()
    again = ours(name, other.parameters(), **OPTIONS)
    dcp.set_state_dict(
        other,
        again,
        model_state_dict=copy.deepcopy(saved[0]),
        optim_state_dict=copy.deepcopy(saved[1]),
    )
    for one, of in ((model, optimizer), (other, again)):
        for batch in batches():
            of.zero_grad()
            loss = loss_of(one, batch)
            loss.backward()
            of.step()
            losses.append(float(loss.detach()))
    assert losses[:STEPS] == losses[STEPS:]


# ------------------------------------------------------------------------------------- accelerate


@pytest.fixture
def accelerate(tmp_path):
    found = pytest.importorskip("accelerate", reason="accelerate is not installed")
    found.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield found
    found.state.AcceleratorState._reset_state(reset_partial_state=True)
    found.state.GradientState._reset_state()


def accelerated(accelerate, side, steps, folder, *, load=False, precision="no"):
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=2, mixed_precision=precision
    )
    model, optimizer = trained(side)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=40)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if load:
        accelerator.load_state(folder / side)
    losses = []
    for batch in list(batches(24))[steps]:
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    if not load:
        accelerator.save_state(folder / side)
    return losses


@pytest.mark.filterwarnings("ignore:::accelerate")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(accelerate, tmp_path, precision):
    """Accumulated, clipped and scheduled; saved and resumed on the way."""
    losses = {}
    for side in SIDES:
        losses[side] = accelerated(
            accelerate, side, slice(0, 12), tmp_path, precision=precision
        ) + accelerated(accelerate, side, slice(12, 24), tmp_path, load=True, precision=precision)
    assert_learned_alike(losses, 1e-5 if precision == "no" else 2e-3)


# --------------------------------------------------------------------------------- Hugging Face's


class Examples(torch.utils.data.Dataset):
    """Sequences of 6 tokens; the label is whether the first is larger than the last."""

    def __init__(self, count=40):
        generator = torch.Generator().manual_seed(2)
        self.tokens = torch.randint(0, 20, (count, 6), generator=generator)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return {
            "input_ids": self.tokens[i],
            "attention_mask": torch.ones(6, dtype=torch.long),
            "labels": (self.tokens[i, 0] > self.tokens[i, -1]).long(),
        }


def trainer_of(transformers, side, folder):
    of, options = SIDES[side]
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    given = transformers.TrainingArguments(
        output_dir=folder / side,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        per_device_train_batch_size=8,
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=9,
        dataloader_pin_memory=False,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        max_grad_norm=0.5,
        weight_decay=0.1,
    )
    return transformers.Trainer(
        model=transformers.BertForSequenceClassification(config),
        args=given,
        train_dataset=Examples(),
        optimizer_cls_and_kwargs=(of, {**options, "lr": 0.005}),
    )


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def transformers():
    found = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    found.utils.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    return found


ignore_trainers = pytest.mark.filterwarnings(
    "ignore:::transformers", "ignore:::accelerate", "ignore:::torch"
)


@ignore_trainers
def test_trainer(transformers, tmp_path):
    """`optimizer_cls_and_kwargs`, with groups with and without decay of the Trainer's making."""
    losses = {}
    for side, (of, _) in SIDES.items():
        trainer = trainer_of(transformers, side, tmp_path)
        trainer.train()
        losses[side] = losses_of(trainer)
        made = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        assert type(made) is of
        assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]
    assert_learned_alike(losses, 1e-3)


@ignore_trainers
def test_trainer_resumed(transformers, tmp_path):
    """From the checkpoint that is made on the way."""
    whole = trainer_of(transformers, "ours", tmp_path)
    whole.train()
    resumed = trainer_of(transformers, "ours", tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-9"))
    assert losses_of(resumed)[-6:] == losses_of(whole)[-6:]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


# -------------------------------------------------------------------------------------- Lightning


@pytest.fixture
def lightning():
    found = pytest.importorskip("lightning", reason="lightning is not installed")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return found


def module_of(lightning, side, losses):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch):
            loss = loss_of(self.network, batch)
            losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self):
            of, options = SIDES[side]
            optimizer = of(self.parameters(), **options)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=40)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Module()


def lightning_trainer(lightning, folder, epochs, **options):
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader():
    return torch.utils.data.DataLoader(list(batches()), batch_size=None)


ignore_lightning = pytest.mark.filterwarnings(
    "ignore:::lightning", "ignore:::torch", "ignore:.*num_workers", "ignore:.*litlogger"
)


@ignore_lightning
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning(lightning, tmp_path, precision):
    """Clipped, accumulated and scheduled; the step is called with Lightning's closure."""
    losses = {}
    for side in SIDES:
        losses[side] = []
        trainer = lightning_trainer(
            lightning,
            tmp_path,
            2,
            precision=precision,
            gradient_clip_val=0.3,
            accumulate_grad_batches=2,
        )
        trainer.fit(module_of(lightning, side, losses[side]), loader())
    assert_learned_alike(losses, 1e-5 if precision == "32-true" else 2e-3)


@ignore_lightning
def test_lightning_resumed(lightning, tmp_path):
    losses = []
    first = lightning_trainer(lightning, tmp_path, 2)
    first.fit(module_of(lightning, "ours", losses), loader())
    first.save_checkpoint(tmp_path / "two.ckpt")
    resumed = lightning_trainer(lightning, tmp_path, 3)
    resumed.fit(module_of(lightning, "ours", losses), loader(), ckpt_path=tmp_path / "two.ckpt")
    whole = []
    lightning_trainer(lightning, tmp_path, 3).fit(module_of(lightning, "ours", whole), loader())
    assert losses == whole


@ignore_lightning
def test_fabric(lightning):
    losses = {}
    for side in SIDES:
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        model, optimizer = fabric.setup(*trained(side))
        losses[side] = []
        for batch in batches():
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizer, max_norm=0.5)
            optimizer.step()
            losses[side].append(float(loss.detach()))
    assert_learned_alike(losses)
