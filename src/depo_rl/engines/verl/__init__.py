"""verl: the curriculum by configuration alone, on an unmodified ``python -m
verl.trainer.main_ppo``.

    data.custom_cls.path=pkg://depo_rl.engines.verl.dataset       data.custom_cls.name=CurriculumDataset
    trainer.v1.sampler.custom_sampler.path=pkg://depo_rl.engines.verl.replay
    trainer.v1.sampler.custom_sampler.name=CurriculumReplayBuffer   (CurriculumReplayBufferAsync in asynchronous modes)
    data.dataloader_num_workers=0       +data.depo.method=depo       +data.depo.curriculum.band=auto

``depo verl-config CONFIG.yaml`` prints the whole command. Who runs where, in verl 0.9.1:

    dataset.py     chooses, where verl's dataloader asks for rows          } one process: the TaskRunner,
    replay.py      observes, where verl samples finished groups            } a Ray actor without a GPU
    driver.py      the run's curriculum between the two, free of verl      }
    host.py        the estimator in a Ray actor of its own, for encoders   any node

This package itself imports neither verl nor ray: the command line reads ``settings`` without them.
"""
