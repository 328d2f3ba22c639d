"""Options that make a run a second long."""

QUIET = "--trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
TINY = "--data.train_size=40 --data.val_size=20 --data.test_size=20 --max_epochs=1"
TINY += " --batch_size=8 --trainer.log_every_n_steps=1"
LINEAR = "--model.model=tests.support.foreign.Linear"
SHAPES = f"--data=SyntheticDataModule {TINY} {LINEAR} {QUIET}"
