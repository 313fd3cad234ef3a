"""Train on images in memory, look at the run, and classify other images."""

import numpy as np

from transferkit import Run, fit

noise = np.random.default_rng(0)
colors = {"apple": (190, 50, 40), "lime": (70, 180, 60)}
labels = ["apple", "lime"] * 20
images = [np.clip(noise.normal(colors[name], 40, (48, 48, 3)), 0, 255).astype(np.uint8) for name in labels]

run = fit(images, labels, backbone="resnet18", max_epochs=3, test_fraction=0.2, name="fruit")
print(run, run.test())
prediction = run.predict(images[0])
print(f"{prediction.label}: {prediction.probability:.3f}")
run.plot_history().savefig("history.png")
run.plot_confusion().savefig("confusion.png")
print("report:", run.report())
again = Run(run.path)  # in another session
assert again.predict(images[:2])[1].label == "lime"
again.extractor.save_pretrained("fruit-extractor", overwrite=True)
