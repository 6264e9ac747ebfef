# %% [markdown]
# # 07 · See surfaces

# %% [markdown]
# **What you'll do**: turn the bones of the scan into a surface in millimetres, look at it
# from the front, turn it with the mouse, render it with VTK, and save it for a printer.
#
# **What you'll learn**
#
# - Extract an isosurface with marching cubes
# - Place it in the patient, and test the place on a ball
# - Close and orient a mesh, and measure its volume
# - Render surfaces and whole volumes with VTK in a notebook
# - Write an STL and read it back
#
# **What you'll need**
#
# | You need | Where | |
# |---|---|---|
# | the affine | [02](02_stack_a_series.ipynb) | necessary |
# | resampling | [04](04_resample_to_millimetres.ipynb) | helpful |
# | VTK (`pyvista`), an optional extra | [README](../README.md) | for one section |
#
# **Time** 25 minutes · **memory** 700 MB · **download** none · **data and licence**
# see [00](00_start_here.ipynb)
#
# ![Bones and lungs as surfaces, from the front](images/07_see_surfaces.png)

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage
from skimage.measure import marching_cubes

import questlib
from questlib import Volume
from questlib.display import use_style

use_style()

# %% [markdown]
# ## What is a surface?
#
# HU change from voxel to voxel. Between a voxel above a level and a neighbor below it,
# the level is crossed somewhere, and linear interpolation says where. *Marching cubes*
# collects these crossings cube by cube and connects them with triangles.
#
# Test it first on a shape whose answer you know: a ball with a radius of 20 mm, on a
# grid that is anisotropic *and* oblique. (`qr` makes three perpendicular axes out of any
# three directions.)

# %%
turn = np.linalg.qr([[1, 0.3, -0.2], [-0.4, 1, 0.1], [0.2, 0.1, 1]])[0]
grid = Volume(np.zeros((30, 50, 50)), (2.0, 1.2, 1.2), (10, 20, 30), turn)
voxels = np.indices(grid.shape).reshape(3, -1)
places = grid.affine[:3, :3] @ voxels + grid.affine[:3, 3:]
center = places.mean(axis=1)

# %% [markdown]
# Let the value fall by 10 a millimetre from the center, so that it passes 0 at the
# radius.

# %%
distance = np.linalg.norm(places.T - center, axis=1).reshape(grid.shape)
ball = replace(grid, array=10 * (20 - distance))
corners, faces, _, _ = marching_cubes(ball.array, level=0)
print(len(corners), "vertices,", len(faces), "triangles")

# %% [markdown]
# How large is the ball? Measure the vertices from their middle.

# %%
radii = np.linalg.norm(corners - corners.mean(axis=0), axis=1)
print(f"radius from {radii.min():.1f} to {radii.max():.1f}")

# %% [markdown]
# No ball, and no millimetres. Marching cubes knows only the indices of the array: its
# vertices are fractions of plane, row and column. The tutorial of 2017 left them there,
# and swapped the axes to make the picture stand upright.

# %% [markdown]
# ## Where is it in the patient?
#
# The affine of notebook 02 takes an index to LPS millimetres. It works for fractions as
# well.

# %%
vertices = corners @ ball.affine[:3, :3].T + ball.origin
radii = np.linalg.norm(vertices - center, axis=1)
print(f"radius from {radii.min():.2f} to {radii.max():.2f} mm")

# %% [markdown]
# That is the ball, in its place. Spacing, rotation and origin came in with one line.
#
# A mesh has an inside and an outside: seen from outside, the corners of each triangle
# run counterclockwise. Printers and renderers need it. The *divergence theorem* tests it:
# sum the signed volumes of the tetrahedra between each triangle and the origin. The sum
# is the enclosed volume, and it is negative when the mesh is inside out.


# %%
def enclosed_ml(vertices, faces):
    first, second, third = np.moveaxis(vertices[faces].astype(float), 1, 0)
    return np.sum(first * np.cross(second, third)) / 6 / 1000


print(f"{enclosed_ml(vertices, faces):.2f} mL")
print(f"{4 / 3 * np.pi * 20**3 / 1000:.2f} mL is a ball of 20 mm radius")

# %% [markdown]
# Size right within 1 %, and the sign says whether the faces look outward. It depends on
# the handedness of the axes: an affine with a negative determinant mirrors, and turns
# every triangle over. So a safe function looks at the determinant, and `extract_surface`
# does.

# %%
from questlib.surface import extract_surface

placed, outward = extract_surface(ball, 0)
assert np.allclose(np.sort(placed, axis=0), np.sort(vertices, axis=0), atol=1e-3)
print(f"{enclosed_ml(placed, outward):+.2f} mL, determinant {np.linalg.det(turn):+.0f}")

# %% [markdown]
# The same vertices as yours, and a positive volume. Here the determinant is +1, and your
# mesh is inside out: scikit-image winds bright bodies that way. With -1, as in every
# usual axial scan in our axis order, it comes out right.
#
# One thing more: where the border of the scan cuts a body open, marching cubes leaves a
# hole. `extract_surface` closes it half a voxel outside, where the last voxels end. Cut
# the ball in half.

# %%
half = replace(ball, array=ball.array[: len(ball.array) // 2])
opened, gaps = marching_cubes(half.array, 0)[:2]
opened = opened @ half.affine[:3, :3].T + half.origin
print(f"open:   {abs(enclosed_ml(opened, gaps)):.2f} mL")
print(f"closed: {enclosed_ml(*extract_surface(half, 0)):.2f} mL")

# %% [markdown]
# The open mesh has no volume at all: its number depends on where the origin lies. The
# closed one holds half a ball. **What would fool you here is a volume computed from a
# mesh with a hole.** No program complains.

# %% [markdown]
# ## What do bones look like?
#
# Now the scan. Triangles are as even as the voxels, so resample to 2 mm first, and count
# how many pieces lie above the level of bone.

# %%
volume = questlib.resample(questlib.load_series(questlib.choose_scan()), 2.0)
level = 200
_, pieces = ndimage.label(volume.array > level)
print(volume)
print(pieces, "pieces above", level, "HU")

# %% [markdown]
# Draw it as it is. `show_surface` thins the mesh, lights it, and looks from the
# patient's front.

# %%
from questlib.surface import show_surface

show_surface(*extract_surface(volume, level, step=2))
plt.show()

# %% [markdown]
# There is more than bone: whatever lies around the patient, such as the table, and noise
# that passes the level by chance. Three steps help, and each one changes the data, so
# name them whenever you show the result.
#
# **1.** Blur a little: a Gaussian with a standard deviation of one voxel.

# %%
calm = ndimage.gaussian_filter(volume.array.astype(np.float32), 1)
_, pieces = ndimage.label(calm > level)
print(pieces, "pieces are left")

# %% [markdown]
# **2.** Keep the body. It is the largest connected piece of tissue after an *opening*,
# which cuts thin bridges to the table. Air inside belongs to it, plane by plane.

# %%
tissue = ndimage.binary_opening(calm > -300, iterations=2)
parts, _ = ndimage.label(tissue)
largest = np.bincount(parts[parts > 0]).argmax()
body = np.stack([ndimage.binary_fill_holes(plane) for plane in parts == largest])
del tissue, parts  # labels take four bytes a voxel
print(f"body: {body.sum() * np.prod(volume.spacing) / 1e6:.1f} L")

# %% [markdown]
# **3.** Drop crumbs: pieces of fewer than 4 mL are no bone worth a picture here.

# %%
regions, _ = ndimage.label((calm > level) & body)
sizes_ml = np.bincount(regions.ravel()) * np.prod(volume.spacing) / 1000
crumbs = (calm > level) & ~((sizes_ml >= 4) & (np.arange(len(sizes_ml)) > 0))[regions]
bones = replace(volume, array=np.where(crumbs, 0, calm))
del regions, crumbs
print((sizes_ml[1:] >= 4).sum(), "pieces are drawn")

# %% [markdown]
# Look again.

# %%
vertices, faces = extract_surface(bones, level)
show_surface(vertices, faces)
plt.show()

# %% [markdown]
# Ribs, spine, and whatever of the shoulders the scan holds. Compare with the first
# picture. Rib cartilage was never there: where it is not calcified, it is softer than
# the level. But front ribs or a sternum that were there and are gone were removed by
# *you*: blurred below the level, or dropped as crumbs. **What would fool you here is a
# clean picture.**

# %% [markdown]
# ## How do you turn it?
#
# A mesh in the browser can be turned with the mouse. Size is the price: the mesh is
# stored inside the notebook.

# %%
print(f"{len(vertices)} vertices, {len(faces)} triangles")
full_kb = (vertices.nbytes + faces.astype(np.int32).nbytes) / 1000
print(f"{full_kb:.0f} kB as numbers, before thinning")

# %% [markdown]
# So thin it. Cut space into cubes of 5 mm and melt all vertices of one cube into one. A
# triangle with two corners in the same cube has no area any more, and goes.

# %%
cubes = np.floor((vertices - vertices.min(axis=0)) / 5).astype(int)
corners = np.unique(cubes, axis=0, return_inverse=True)[1][faces]
first, second, third = corners.T
alive = (first != second) & (second != third) & (third != first)
print(np.count_nonzero(alive), "triangles are left")

# %% [markdown]
# `simplify_surface` does the same, and puts each new vertex at the mean of the old ones.

# %%
from questlib.surface import simplify_surface

light = simplify_surface(vertices, faces, cell=5)
assert np.array_equal(light[1], corners[alive])

# %% [markdown]
# The still view comes first: it is what a printed page shows. You stand before the
# patient's right shoulder.

# %%
show_surface(*light, azimuth=-40)
plt.show()

# %% [markdown]
# A fraction of the triangles, and still the same bones; only the thin edges have become
# rough. Then the view that you can turn. `explore_surface` thins in its own way, until
# the mesh fits into 200 kB. It needs no network, and starts at the patient's front with
# the head up.

# %% tags=["nbval-ignore-output"]
from questlib.surface import explore_surface

explore_surface(vertices, faces)

# %% [markdown]
# Drag to turn, scroll to come closer. For measuring take the full mesh.

# %% [markdown]
# ## Can VTK do this in a notebook?
#
# In 2017 a reader asked for VTK, the engine behind most medical 3-D programs, and was
# told that it cannot be shown inside the notebook. **It can.** VTK draws into memory
# without any window and hands back an array, which is a picture like any other. Three
# honest limits:
#
# - The picture stands still. To turn it, use the plotly view above.
# - It needs VTK, some 100 MB, and on a server a software renderer (EGL or OSMesa).
# - VTK's own viewers for the browser need a running server, or, as an HTML export, store
#   the whole scene in the page.

# %% [markdown]
# Take the air inside the body as a second surface: lungs and airways, and gas of the
# stomach or bowel where there is some. A mask has voxel steps; smoothing irons them
# without shrinking.

# %%
from questlib.surface import render_surface, smooth_surface

air = replace(volume, array=(calm < -400) & body)
points, triangles = extract_surface(air)
points = smooth_surface(points, triangles)
print(f"air inside: {enclosed_ml(points, triangles) / 1000:.2f} L")

# %% [markdown]
# Solid bones, translucent lungs, one scene.

# %% tags=["cover"]
blue = "#56B4E9"
lungs = (points, triangles, blue, 0.5)
picture = render_surface(vertices, faces, others=[lungs], size=(440, 440))
plt.figure(figsize=(5.5, 5.8))
plt.imshow(picture)
plt.title("from the front: the patient's right is at your left")
plt.axis("off")
plt.show()

# %% [markdown]
# The lungs fill the cage of the ribs, and the trachea enters from above. Air below the
# lungs is gas in the stomach or the bowel.
#
# Walk around the patient and look at the lungs alone, from behind. The patient's left is
# now at *your left*: a plane carries letters, a rendering says nothing. So write it.

# %%
picture = render_surface(points, triangles, color=blue, azimuth=160, size=(400, 400))
plt.figure(figsize=(5, 5.3))
plt.imshow(picture)
plt.title("from behind: the patient's left is at your left")
plt.axis("off")
plt.show()

# %% [markdown] tags=["patient"]
# A crater, high up in the left lung. That is the tumor of notebook 00: it has the HU of
# soft tissue and lies against the chest wall, so a surface of air runs around it. A mask
# of air has lost it, and nothing in the mesh says so.

# %% [markdown]
# A surface keeps one level and forgets all else. *Volume rendering* keeps every voxel: a
# ray goes through the scan for each pixel and gathers color and opacity, which a
# *transfer function* looks up from the HU. No mesh, no threshold, and soft borders stay
# soft.

# %%
from questlib.surface import PRESETS, render_volume

for hu, opacity, color in PRESETS["bones"]:
    print(f"{hu:5} HU: opacity {opacity:.2f}, color {color}")

# %% [markdown]
# Blank what lies outside the body, then look through two presets.

# %%
inside = ndimage.binary_dilation(body, iterations=1)
scene = replace(volume, array=np.where(inside, calm, -1024).astype(np.float32))
axes = plt.subplots(1, 2, figsize=(8, 4))[1]
for ax, preset in zip(axes, ("bones", "skin"), strict=True):
    ax.imshow(render_volume(scene, preset=preset, size=(310, 310)))
    ax.set_title(preset)
    ax.set_axis_off()
plt.show()

# %% [markdown]
# Both look at the patient from the front. Same voxels, same camera, another table of
# colors. Beautiful, and easy to believe: opacity is a choice, so a fracture or a nodule
# can vanish between two entries of the table. Radiologists read planes first.

# %% [markdown]
# ## How do you hold it in your hand?
#
# An STL file is the plainest mesh there is: 80 bytes of header, the number of triangles,
# then 50 bytes for each. Write it to a temporary folder.

# %%
from questlib.surface import save_stl

folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "bones.stl"
save_stl(path, vertices, faces)
print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# Read it back with nothing but numpy, and compare.

# %%
record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])
count = np.fromfile(path, "<u4", count=1, offset=80)[0]
read = np.fromfile(path, record, offset=84)
assert len(read) == count == len(faces)
assert np.array_equal(read["corners"], vertices[faces])
print(count, "triangles, size", np.ptp(vertices, axis=0).round(), "mm")

# %% [markdown]
# The numbers are LPS millimetres, so a print has the patient's size. But STL has no
# field for units or axes: whoever opens the file must be told. And a second save does
# not overwrite what is there.

# %% tags=["raises-exception"]
save_stl(path, vertices, faces)

# %% [markdown]
# Say `overwrite=True` when you mean it. Clean up the folder.

# %%
folder.cleanup()
print("still there:", path.exists())

# %% [markdown]
# ## Check yourself
#
# 1. Predict: by which factor does the number of triangles fall with `step=2`? Then
#    compute it on the ball.
# 2. How large is the STL of the ball? Compute it without writing the file.
# 3. Smooth the ball 50 times. Does it shrink?

# %% [markdown]
# ## Summary
#
# - Marching cubes returns indices; the affine makes them millimetres in the patient.
# - The divergence theorem measures a mesh and tells inside from outside: the ball of
#   20 mm came out within 1 %.
# - Close a mesh before you measure it.
# - Blur, body and crumbs: name what you did to the data before you show a surface.
# - VTK draws in a notebook: off screen, as a picture.

# %% [markdown]
# ## In practice
#
# Printing for surgery is a regulated process: segmentation is checked plane by plane,
# meshes are repaired, and printed sizes are measured on a phantom. Thick planes make
# stairs that smoothing hides but does not heal. A face can be recognized in a surface
# of a head: a rendering may identify a patient although the header is clean. Education
# and research, not for diagnosis.

# %% [markdown]
# ## What's next
#
# Surfaces are as good as masks. [08 · Mask one plane](08_mask_one_plane.ipynb) begins
# with the mask of 2017.

# %% [markdown]
# ## References
#
# - W. E. Lorensen and H. E. Cline, "Marching cubes", Computer Graphics (SIGGRAPH) 21
#   (1987), 163-169.
# - T. Lewiner et al., "Efficient implementation of marching cubes' cases with
#   topological guarantees", Journal of Graphics Tools 8 (2003), 1-15: in scikit-image.
# - W. Schroeder et al., "Flying edges", IEEE Symposium on Large Data Analysis and
#   Visualization (2015): in VTK.
# - J. Rossignac and P. Borrel, "Multi-resolution 3D approximations for rendering complex
#   scenes", Modeling in Computer Graphics (1993): vertices melted cube by cube.
# - G. Taubin, "A signal processing approach to fair surface design", SIGGRAPH (1995).
# - DICOM PS3.3, C.7.6.2.1.1: from voxels to millimetres.
# - Data: Lung-PET-CT-Dx, The Cancer Imaging Archive, DOI 10.7937/TCIA.2020.NNC2-0461.
#
# Code: BSD-3-Clause. Text and figures: CC BY 4.0.

# %% [markdown]
# ## Solutions
#
# 1. About four: a surface grows with the square of the resolution.

# %%
fine, coarse = (len(extract_surface(ball, 0, step=step)[1]) for step in (1, 2))
assert 3 < fine / coarse < 5
print(f"{fine / coarse:.1f} times fewer triangles")

# %% [markdown]
# 2. A header of 84 bytes, and 50 for each triangle.

# %%
with tempfile.TemporaryDirectory() as place:
    save_stl(Path(place) / "ball.stl", placed, outward)
    assert (Path(place) / "ball.stl").stat().st_size == 84 + 50 * fine
print((84 + 50 * fine) / 1000, "kB, as computed")

# %% [markdown]
# 3. No, it grows a little: each pass inward is followed by one outward, which goes a trifle
# further.

# %%
smooth = smooth_surface(placed, outward, passes=50)
loss = 1 - enclosed_ml(smooth, outward) / enclosed_ml(placed, outward)
assert abs(loss) < 0.02
print(f"volume changes by {-100 * loss:+.2f} %")
